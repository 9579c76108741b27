"""A stock gRPC client (C-core), driven over standard input and output.

Started with a target such as `xds:///reviews.default:9080` and the kind of its credentials, `insecure` or
`xds`, it keeps one channel. Each line it reads is a
JSON object and each is answered by one line:

    {"calls": 100, "metadata": [["x-user", "jason"]]}
    -> {"answers": {"v1": 97, "v2": 3}, "errors": {}}

An answer is the text that a backend sent; an error is the name of the status code with its details. Refuses
to know xDS: that is gRPC's, configured by GRPC_XDS_BOOTSTRAP.
"""

import collections
import json
import sys

import grpc
import grpc.experimental

METHOD = "/mesh.interop.Backend/Name"
# A call that takes longer is an error. The first one waits for configuration, and this client takes 15 s
# to believe that a listener does not exist.
DEADLINE_SECONDS = 20


def main(target, credentials):
    plaintext = grpc.experimental.insecure_channel_credentials()
    chosen = {"insecure": plaintext, "xds": grpc.xds_channel_credentials(plaintext)}[credentials]
    with grpc.secure_channel(target, chosen) as channel:
        call = channel.unary_unary(METHOD, request_serializer=bytes, response_deserializer=bytes.decode)
        for line in sys.stdin:
            order = json.loads(line)
            print(json.dumps(carry_out(call, order)), flush=True)


def carry_out(call, order):
    answers, errors = collections.Counter(), collections.Counter()
    metadata = [tuple(pair) for pair in order.get("metadata", [])]
    for _ in range(order["calls"]):
        try:
            answers[call(b"", metadata=metadata, timeout=DEADLINE_SECONDS)] += 1
        except grpc.RpcError as error:
            errors[f"{error.code().name}: {error.details()}"] += 1
    return {"answers": answers, "errors": errors}


if __name__ == "__main__":
    main(*sys.argv[1:])
