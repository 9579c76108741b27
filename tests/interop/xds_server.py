"""A stock gRPC server (C-core) that is told by xDS how to serve.

Started with an address and a name, it prints `started` once it listens, and serves until its standard input
is closed. Each call is answered with its name and the caller's SPIFFE ID. Refuses to know xDS: that is gRPC's,
configured by GRPC_XDS_BOOTSTRAP.
"""

import concurrent.futures
import sys

import grpc


class Name(grpc.GenericRpcHandler):
    def __init__(self, name):
        self.name = name

    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(self.answer)

    def answer(self, request, context):
        callers = context.auth_context().get("peer_spiffe_id", [])
        return b" ".join([self.name.encode(), *callers])


def main(address, name):
    pool = concurrent.futures.ThreadPoolExecutor(max_workers=4)
    server = grpc.server(pool, handlers=[Name(name)], xds=True)
    server.add_secure_port(address, grpc.xds_server_credentials(grpc.insecure_server_credentials()))
    server.start()
    print("started", flush=True)
    sys.stdin.read()
    server.stop(None)


if __name__ == "__main__":
    main(*sys.argv[1:])
