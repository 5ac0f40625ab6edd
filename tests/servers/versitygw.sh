#!/bin/sh
# Builds the S3 server of the object store's tests once (about 80 s, needs Go) and prints where it lies.
# versitygw is Apache-2.0 and keeps its buckets in plain folders; it is a tool for tests and never shipped.
set -eu
version=v1.8.0
repository=$(cd "$(dirname "$0")/../.." && pwd)
binary="$repository/.cache/bin/versitygw-$version"
if [ ! -x "$binary" ]; then
    command -v go >/dev/null || { echo "versitygw is built with Go, which is not on PATH" >&2; exit 3; }
    mkdir -p "$repository/.cache/bin"
    # two test runs at once build into folders of their own, the last rename wins
    building=$(mktemp -d "$repository/.cache/build-XXXXXX")
    trap 'rm -rf "$building"' EXIT
    GOBIN="$building" go install -trimpath "github.com/versity/versitygw/cmd/versitygw@$version" >&2
    mv "$building/versitygw" "$binary"
fi
echo "$binary"
