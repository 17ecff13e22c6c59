# SPDX-License-Identifier: Apache-2.0
"""An independent client of the coordinator: Python, grpcio, messages generated from p2p.proto.

Usage: client.py GENERATED_FOLDER ADDRESS SHORT_LIVED_ADDRESS. Prints one JSON line for each claim:
{"name": ..., "error": null or text}. The second coordinator has heartbeat and retention times of
about a second.
"""

import hashlib
import json
import sys
import time
import traceback
import uuid

import grpc

sys.path.insert(0, sys.argv[1])
import p2p_pb2 as p2p  # noqa: E402
import p2p_pb2_grpc  # noqa: E402

DEADLINE = 30
MEGABYTES_100 = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def connect(address):
    channel = grpc.insecure_channel(address, options=MEGABYTES_100)
    return p2p_pb2_grpc.P2pServiceStub(channel), channel


mx, channel = connect(sys.argv[2])
short, _short_channel = connect(sys.argv[3])


def identity(**fields):
    """A new model each time, so that no claim sees the records of another."""
    base = {"model_name": f"model-{uuid.uuid4()}", "mx_version": "0.5.0", "dtype": "bfloat16"}
    return p2p.SourceIdentity(**{**base, **fields})


def publish(who, worker_id="w", stub=mx, **worker):
    worker = p2p.WorkerMetadata(**{"status": p2p.SOURCE_STATUS_READY, **worker})
    request = p2p.PublishMetadataRequest(identity=who, worker=worker, worker_id=worker_id)
    response = stub.PublishMetadata(request, timeout=DEADLINE)
    assert response.success, response.message
    return response


def update(source_id, status, worker_id="w", rank=0, stub=mx):
    request = p2p.UpdateStatusRequest(
        mx_source_id=source_id, worker_id=worker_id, worker_rank=rank, status=status
    )
    return stub.UpdateStatus(request, timeout=DEADLINE)


def listed(stub=mx, **fields):
    return stub.ListSources(p2p.ListSourcesRequest(**fields), timeout=DEADLINE).instances


def workers(**fields):
    return [ref.worker_id for ref in listed(**fields)]


def get(source_id, worker_id="w", stub=mx):
    request = p2p.GetMetadataRequest(mx_source_id=source_id, worker_id=worker_id)
    return stub.GetMetadata(request, timeout=DEADLINE)


def source_id_of(who):
    """The id by Python's own hashing, from the wire facts."""
    extra = {}
    for key in sorted(who.extra_parameters):
        extra.setdefault(key.lower(), who.extra_parameters[key].lower())
    fields = {
        "mx_version": who.mx_version.lower(),
        "mx_source_type": who.mx_source_type,
        "model_name": who.model_name.lower(),
        "backend_framework": who.backend_framework,
        "tensor_parallel_size": who.tensor_parallel_size,
        "pipeline_parallel_size": who.pipeline_parallel_size,
        "expert_parallel_size": who.expert_parallel_size,
        "dtype": who.dtype.lower(),
        "quantization": who.quantization.lower(),
        "extra_parameters": extra,
        "revision": who.revision.lower(),
    }
    for name in (
        "backend_framework_version",
        "torch_version",
        "cuda_version",
        "triton_version",
        "gpu_arch",
        "compile_config_digest",
    ):
        if getattr(who, name):
            fields[name] = getattr(who, name).lower()
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


FULL_IDENTITY = {
    "mx_source_type": p2p.MX_SOURCE_TYPE_TVM_FFI_CACHE,
    "backend_framework": p2p.BACKEND_FRAMEWORK_TRT_LLM,
    "tensor_parallel_size": 8,
    "pipeline_parallel_size": 2,
    "expert_parallel_size": 4294967295,
    "quantization": "FP8",
    "extra_parameters": {"training_step": "7", "layout_signature": "Sig", "Foo": "a", "foo": "b"},
    "revision": "Main",
    "backend_framework_version": "0.10",
    "torch_version": "2.8.0+cu128",
    "cuda_version": "12.8",
    "triton_version": "3.4",
    "gpu_arch": "SM90",
    "compile_config_digest": "AbC",
}


def the_three_published_identities_have_their_ids():
    base = dict(
        mx_version="0.5.0",
        model_name="deepseek-ai/DeepSeek-V3",
        backend_framework=p2p.BACKEND_FRAMEWORK_VLLM,
        tensor_parallel_size=8,
        pipeline_parallel_size=1,
        dtype="bfloat16",
    )
    for fields, wanted in (
        ({}, "5a5f555570065064"),
        ({"revision": "abc123def4567890"}, "d0c184b2a9a34c82"),
        ({"extra_parameters": {"Foo": "a", "foo": "b"}}, "bf71fb9340cd940a"),
    ):
        who = p2p.SourceIdentity(**base, **fields)
        assert source_id_of(who) == wanted
        assert publish(who).mx_source_id == wanted


def an_identity_with_every_field_has_the_id_that_python_computes():
    who = identity(**FULL_IDENTITY)
    assert publish(who).mx_source_id == source_id_of(who)


def what_is_missing_is_said_inside_the_response():
    worker = p2p.WorkerMetadata(status=p2p.SOURCE_STATUS_READY)
    unknown = p2p.WorkerMetadata(status=99)
    for request in (
        p2p.PublishMetadataRequest(worker=worker, worker_id="w"),
        p2p.PublishMetadataRequest(identity=identity(model_name=""), worker=worker, worker_id="w"),
        p2p.PublishMetadataRequest(identity=identity(), worker_id="w"),
        p2p.PublishMetadataRequest(identity=identity(), worker=worker),
        p2p.PublishMetadataRequest(identity=identity(), worker=unknown, worker_id="w"),
    ):
        response = mx.PublishMetadata(request, timeout=DEADLINE)
        assert not response.success and response.message, response
    source_id = publish(identity()).mx_source_id
    for response in (
        update("", p2p.SOURCE_STATUS_READY),
        update(source_id, p2p.SOURCE_STATUS_READY, worker_id=""),
        update(source_id, 99),
        update(source_id, p2p.SOURCE_STATUS_READY, worker_id="nobody"),
        update("0" * 16, p2p.SOURCE_STATUS_READY),
    ):
        assert not response.success and response.message, response
    for response in (get("", "w"), get(source_id, ""), get(source_id, "nobody"), get("0" * 16)):
        assert not response.found


def publish_echoes_the_worker_and_stores_it_under_the_pair():
    who = identity()
    response = publish(who, "one")
    assert (response.worker_id, response.mx_source_id) == ("one", source_id_of(who))
    publish(who, "two")
    assert sorted(workers(identity=who)) == ["one", "two"]


def a_second_publish_of_a_pair_replaces_the_first():
    who = identity()
    publish(who, accelerator="old", worker_rank=1)
    source_id = publish(who, accelerator="new", worker_rank=2).mx_source_id
    assert len(listed(identity=who)) == 1
    worker = get(source_id).worker
    assert (worker.accelerator, worker.worker_rank) == ("new", 2)


def every_field_of_a_worker_comes_back():
    tensor = p2p.TensorDescriptor(
        name="t", addr=2**64 - 1, size=2**63, device_id=7, dtype="bfloat16"
    )
    payloads = (
        {"nixl_metadata": b"\x00\xff", "tensor_source": {"tensors": [tensor]}},
        {
            "transfer_engine_session_id": "session",
            "artifact_source": {
                "artifact_id": "a",
                "total_size": 2**64 - 1,
                "file_count": 2,
                "chunk_count": 3,
                "node_rank": 4,
            },
        },
        {"tensors": [tensor]},
    )
    for payload in payloads:
        who = identity(**FULL_IDENTITY)
        fields = dict(
            worker_rank=3,
            status=p2p.SOURCE_STATUS_READY,
            metadata_endpoint="h:1",
            agent_name="agent",
            worker_grpc_endpoint="h:2",
            accelerator="cuda",
            **payload,
        )
        source_id = publish(who, **fields).mx_source_id
        response = get(source_id)
        assert response.found and response.worker_id == "w" and response.mx_source_id == source_id
        assert response.identity == who
        wanted = p2p.WorkerMetadata(**fields, updated_at=response.worker.updated_at)
        assert response.worker == wanted, response.worker


def list_without_identity_or_model_name_lists_all_sources():
    published = {publish(identity()).mx_source_id for _ in range(3)}
    assert published <= {ref.mx_source_id for ref in listed()}
    empty = p2p.SourceIdentity(mx_version="0.5.0")
    assert published <= {ref.mx_source_id for ref in listed(identity=empty)}


def list_filters_by_status_model_rank_step_and_time():
    who = identity(extra_parameters={"training_step": "41"})
    source_id = publish(who, "ready", worker_rank=1).mx_source_id
    publish(who, "starting", worker_rank=2, status=p2p.SOURCE_STATUS_INITIALIZING)
    assert workers(identity=who, status_filter=p2p.SOURCE_STATUS_READY) == ["ready"]
    assert workers(identity=who, status_filter=p2p.SOURCE_STATUS_INITIALIZING) == ["starting"]
    assert workers(identity=who, status_filter=p2p.SOURCE_STATUS_STALE) == []
    assert workers(identity=who, worker_rank_filter=2) == ["starting"]
    assert workers(identity=who, worker_rank_filter=0) == []
    assert len(workers(model_name_filter=who.model_name)) == 2
    assert workers(identity=who, model_name_filter="other") == []
    assert len(workers(identity=who, min_training_step=41)) == 2
    assert workers(identity=who, min_training_step=42) == []
    updated_at = get(source_id, "ready").worker.updated_at
    assert "ready" in workers(identity=who, min_updated_at=updated_at)
    assert workers(identity=who, min_updated_at=updated_at + 3_600_000) == []


def list_gives_the_newest_first_when_limited():
    who = identity()
    for worker_id in ("a", "b", "c"):
        source_id = publish(who, worker_id).mx_source_id
        time.sleep(0.01)
    assert workers(identity=who, limit=2) == ["c", "b"]
    assert update(source_id, p2p.SOURCE_STATUS_READY, worker_id="a").success
    assert workers(identity=who, limit=2) == ["a", "c"]


def update_refreshes_updated_at_in_unix_milliseconds():
    who = identity()
    source_id = publish(who).mx_source_id
    before = get(source_id).worker.updated_at
    time.sleep(0.02)
    assert update(source_id, p2p.SOURCE_STATUS_READY).success
    after = get(source_id).worker.updated_at
    assert before < after and abs(after - time.time() * 1000) < 60_000
    assert listed(identity=who)[0].updated_at == after


def a_late_ready_does_not_undo_a_workers_stale():
    who = identity()
    source_id = publish(who).mx_source_id
    assert update(source_id, p2p.SOURCE_STATUS_STALE).success
    late = update(source_id, p2p.SOURCE_STATUS_READY)
    assert not late.success and late.message
    assert get(source_id).worker.status == p2p.SOURCE_STATUS_STALE
    assert workers(identity=who, status_filter=p2p.SOURCE_STATUS_READY) == []
    publish(who)
    assert update(source_id, p2p.SOURCE_STATUS_READY).success


def a_silent_record_turns_stale_and_a_heartbeat_keeps_one_ready():
    who = identity()
    source_id = publish(who, "silent", stub=short).mx_source_id
    publish(who, "beating", stub=short)
    for _ in range(30):
        assert update(source_id, p2p.SOURCE_STATUS_READY, worker_id="beating", stub=short).success
        refs = {ref.worker_id for ref in listed(short, identity=who, status_filter=p2p.SOURCE_STATUS_READY)}
        assert "beating" in refs
        silent = get(source_id, "silent", stub=short)
        if silent.found and silent.worker.status == p2p.SOURCE_STATUS_STALE:
            assert refs == {"beating"}
            return
        time.sleep(0.1)
    raise AssertionError("never stale")


def a_stale_record_is_removed_after_its_retention():
    source_id = publish(identity(), stub=short).mx_source_id
    update(source_id, p2p.SOURCE_STATUS_STALE, stub=short)
    for _ in range(100):
        if not get(source_id, stub=short).found:
            return
        time.sleep(0.1)
    raise AssertionError("never removed")


def training_step_and_layout_signature_are_lifted_and_absent_is_not_zero():
    plain = identity()
    publish(plain)
    (ref,) = listed(identity=plain)
    assert not ref.HasField("training_step") and not ref.HasField("layout_signature")
    zero = identity(extra_parameters={"training_step": "0", "layout_signature": "sig"})
    publish(zero)
    (ref,) = listed(identity=zero)
    assert ref.HasField("training_step") and ref.training_step == 0
    assert ref.layout_signature == "sig" and ref.model_name == zero.model_name
    assert workers(identity=plain, min_training_step=0) == []
    huge = identity(extra_parameters={"training_step": str(2**64 - 1)})
    publish(huge)
    assert listed(identity=huge)[0].training_step == 2**64 - 1


def a_bearer_token_in_the_metadata_is_accepted():
    request = p2p.ListSourcesRequest(identity=identity())
    metadata = (("authorization", "Bearer token"),)
    assert not mx.ListSources(request, timeout=DEADLINE, metadata=metadata).instances


def a_message_of_96_mib_passes_and_one_above_100_mib_is_refused():
    blob = bytes(96 * 1024 * 1024)
    source_id = publish(identity(), nixl_metadata=blob).mx_source_id
    assert len(get(source_id).worker.nixl_metadata) == len(blob)
    try:
        publish(identity(), nixl_metadata=bytes(101 * 1024 * 1024))
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error.code()
    else:
        raise AssertionError("accepted")
    assert get(source_id).found


def bytes_that_are_no_message_are_refused_and_the_coordinator_serves_on():
    call = channel.unary_unary("/model_express.p2p.P2pService/ListSources")
    for garbage in (b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x7f", b"\x08"):
        try:
            call(garbage, timeout=DEADLINE)
        except grpc.RpcError as error:
            assert error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT)
        else:
            raise AssertionError("accepted")
    assert listed(identity=identity()) is not None


def an_unknown_method_is_unimplemented():
    call = channel.unary_unary("/model_express.p2p.P2pService/NoSuchMethod")
    try:
        call(b"", timeout=DEADLINE)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error.code()
    else:
        raise AssertionError("accepted")


def health_says_serving_for_every_service():
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "model_express.p2p.P2pService", "relight.v1.Coordinator"):
        request = health_pb2.HealthCheckRequest(service=service)
        assert health.Check(request, timeout=DEADLINE).status == 1, service


def reflection_lists_the_services_and_gives_their_messages():
    from google.protobuf.descriptor_pool import DescriptorPool
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
        ProtoReflectionDescriptorDatabase,
    )

    database = ProtoReflectionDescriptorDatabase(channel)
    services = set(database.get_services())
    wanted = {"model_express.p2p.P2pService", "relight.v1.Coordinator", "grpc.health.v1.Health"}
    assert wanted <= services, services
    pool = DescriptorPool(database)
    found = pool.FindServiceByName("relight.v1.Coordinator").FindMethodByName("Publish")
    assert found.input_type.fields_by_name["identity"].message_type.name == "SourceIdentity"


CLAIMS = [
    value
    for name, value in list(globals().items())
    if callable(value)
    and getattr(value, "__module__", "") == "__main__"
    and name
    not in ("connect", "identity", "publish", "update", "listed", "workers", "get", "source_id_of")
]

for claim in CLAIMS:
    error = None
    try:
        claim()
    except Exception:
        error = traceback.format_exc(limit=3)
    print(json.dumps({"name": claim.__name__.replace("_", " "), "error": error}), flush=True)
