#!/bin/sh
# The vault tests over a throwaway SoftHSM token; further arguments go to pytest. PYTHON picks the interpreter.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}

"$python" -c 'import pkcs11, pytest' 2>/dev/null || {
    echo "$0: $python lacks python-pkcs11 or pytest: pip install 'ockam-edge[test]', or set PYTHON" >&2
    exit 69
}
dir=$(mktemp -d)
trap '"$here/token.sh" destroy "$dir" 2>/dev/null || :; rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM

# Not eval "$(...)" at once: the shell would not notice that it failed.
environment=$("$here/token.sh" create "$dir" edge-test)
eval "$environment"
cd "$here/.."
"$python" -m pytest tests/vault --vault-uri "$VAULT_URI" "$@"
