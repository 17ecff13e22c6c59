# SPDX-License-Identifier: Apache-2.0
"""Relight's thin side of an engine. Importing this loads nothing; the agent decides everything."""
