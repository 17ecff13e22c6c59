// SPDX-License-Identifier: Apache-2.0
// gRPC to a coordinator behind TLS 1.3: shows our present certificate at each connection, so that a
// renewed one is used without a new client, and believes only the fleet's coordinator.

import { createSecureContext } from "node:tls";
import { CallCredentials, ChannelCredentials, type ChannelOptions } from "@grpc/grpc-js";
import { checkServer, secureContextOptions } from "../trust/tls.ts";
import { coordinatorUri, type TlsMaterial, tlsIdentity } from "../trust/tls-material.ts";
import { trustDomainOf } from "../trust/tls-source.ts";

type Connector = ReturnType<ChannelCredentials["_createSecureConnector"]>;
type ConnectorArguments = Parameters<ChannelCredentials["_createSecureConnector"]>;

/** No name of a host is sent or compared: who the coordinator is stands in its SPIFFE id. */
export const fleetChannelOptions: ChannelOptions = { "grpc.ssl_target_name_override": "relight" };

/** @param material What to show now; asked at each connection. */
export function fleetCredentials(material: () => TlsMaterial): ChannelCredentials {
  return new FleetChannelCredentials(material);
}

class FleetChannelCredentials extends ChannelCredentials {
  readonly #material: () => TlsMaterial;

  constructor(material: () => TlsMaterial) {
    super();
    this.#material = material;
  }

  override _isSecure(): boolean {
    return true;
  }

  override _equals(other: ChannelCredentials): boolean {
    return this === other;
  }

  override _createSecureConnector(...given: ConnectorArguments): Connector {
    const [, , callCredentials = CallCredentials.createEmpty()] = given;
    return {
      // What is wrong with our material fails the connection, not the client.
      connect: async (socket) => await this.#connector(given).connect(socket),
      waitForReady: async () => {},
      getCallCredentials: () => callCredentials,
      destroy: () => {},
    };
  }

  #connector(given: ConnectorArguments): Connector {
    const material = this.#material();
    const identity = tlsIdentity(material);
    const wanted = coordinatorUri(trustDomainOf(material));
    const checkServerIdentity = checkServer(identity, { wanted, now: Date.now });
    const context = createSecureContext(secureContextOptions(identity));
    const credentials = ChannelCredentials.createFromSecureContext(context, {
      checkServerIdentity,
    });
    return credentials._createSecureConnector(...given);
  }
}
