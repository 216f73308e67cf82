#!/bin/sh
# A throwaway SoftHSM token: create DIR [LABEL] prints the environment and the vault URI, destroy DIR removes it.
set -eu

usage() {
    echo "usage: $0 create DIR [LABEL] | destroy DIR" >&2
    exit 64
}

find_module() {
    for path in /usr/lib/softhsm/libsofthsm2.so /usr/lib64/pkcs11/libsofthsm2.so \
        /usr/lib64/softhsm/libsofthsm2.so /usr/local/lib/softhsm/libsofthsm2.so; do
        if [ -e "$path" ]; then
            echo "$path"
            return
        fi
    done
    echo "$0: libsofthsm2.so is not installed (Debian: apt-get install softhsm2)" >&2
    exit 69
}

create() {
    dir=$1 label=${2:-edge}
    module=$(find_module)
    command -v softhsm2-util >/dev/null || {
        echo "$0: softhsm2-util is not installed (Debian: apt-get install softhsm2)" >&2
        exit 69
    }
    umask 077
    mkdir -p "$dir/tokens"
    dir=$(cd "$dir" && pwd)
    if [ -e "$dir/softhsm2.conf" ]; then
        echo "$0: $dir holds a token already; destroy it first" >&2
        exit 73
    fi
    printf 'directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n' \
        "$dir/tokens" >"$dir/softhsm2.conf"
    od -An -N4 -tu4 /dev/urandom | tr -d ' ' >"$dir/pin"
    # The PIN is on a command line here: good enough for a token that protects nothing.
    SOFTHSM2_CONF="$dir/softhsm2.conf" softhsm2-util --init-token --free --label "$label" \
        --so-pin 12345678 --pin "$(cat "$dir/pin")" >&2
    echo "export SOFTHSM2_CONF='$dir/softhsm2.conf'"
    echo "export VAULT_URI='pkcs11:token=$label?module-path=$module&pin-source=file:$dir/pin'"
}

destroy() {
    # Only what create made: never an arbitrary folder given by mistake.
    [ -e "$1/softhsm2.conf" ] || {
        echo "$0: $1 holds no token of ours" >&2
        exit 66
    }
    rm -rf "$1/tokens" "$1/softhsm2.conf" "$1/pin"
    rmdir "$1" 2>/dev/null || :
}

[ $# -ge 2 ] || usage
case $1 in
create) create "$2" "${3:-}" ;;
destroy) destroy "$2" ;;
*) usage ;;
esac
