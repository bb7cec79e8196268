"""The state service over TLS, by gRPC's own client: the arguments are the address and the authority's file."""

import sys

import grpc
from statehouse._generated.statehouse.v1 import statehouse_pb2, statehouse_pb2_grpc

address, authority = sys.argv[1:]
with open(authority, "rb") as file:
    credentials = grpc.ssl_channel_credentials(root_certificates=file.read())
with grpc.secure_channel(address, credentials) as channel:
    stub = statehouse_pb2_grpc.StatehouseServiceStub(channel)
    assert stub.Health(statehouse_pb2.HealthRequest(), timeout=60).status == "ok"
    print(stub.Version(statehouse_pb2.VersionRequest(), timeout=60).version)

# Without the authority, the server is not trusted.
with grpc.secure_channel(address, grpc.ssl_channel_credentials()) as channel:
    stub = statehouse_pb2_grpc.StatehouseServiceStub(channel)
    try:
        stub.Health(statehouse_pb2.HealthRequest(), timeout=60)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNAVAILABLE, error
    else:
        raise AssertionError("a certificate of an unknown authority was accepted")
