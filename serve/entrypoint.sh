#!/bin/sh
# Starts Triton in the container. It speaks TLS where /run/secrets has tls.pem and tls.key (mutual TLS with tls-ca.pem),
# and plain text otherwise: then publish the port on the loopback address alone.
set -eu

secrets=${SLIME_SECRETS:-/run/secrets}
if [ -r "$secrets/admin-key" ]; then
    key=$(tr -d '[:space:]' < "$secrets/admin-key")
else
    # A random key that nobody knows.
    key=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
fi
restricted="model-repository,shared-memory,trace,logging:slime-key=$key"

set -- --grpc-restricted-protocol="$restricted" --http-restricted-api="$restricted" "$@"
if [ -r "$secrets/tls.pem" ]; then
    set -- --grpc-use-ssl=true --grpc-server-cert="$secrets/tls.pem" --grpc-server-key="$secrets/tls.key" "$@"
fi
if [ -r "$secrets/tls-ca.pem" ]; then
    set -- --grpc-use-ssl-mutual=true --grpc-root-cert="$secrets/tls-ca.pem" "$@"
fi

# Polling instead of the load requests: nobody who reaches a port can load a model of their own into the server.
exec "${SLIME_TRITON:-tritonserver}" \
    --model-repository="${SLIME_REPOSITORY:-/models}" --model-control-mode=poll --repository-poll-secs=5 \
    --exit-on-error=false --exit-timeout-secs=10 --backend-config=python,stub-timeout-seconds=600 \
    --metrics-config=summary_latencies=true --http-address=127.0.0.1 --metrics-address="${SLIME_METRICS_ADDRESS:-127.0.0.1}" "$@"
