#!/bin/sh
# A Debian 13 root file system with modules that Debian 12 has not (yubihsm_pkcs11, tpm2-pkcs11 1.9.1), and commands run in it.
#
#   trixie.sh make FOLDER                  builds FOLDER/root, once (2 minutes, 700 MB)
#   trixie.sh run FOLDER OUT COMMAND...    runs it there, in /checkout (this checkout, read-only); OUT is /out
#
# Ends with 77 where it cannot be done (no root, no mmdebstrap): a skip, said on stderr.
set -eu

PACKAGES="python3 python3-venv python3-dev gcc libc6-dev ca-certificates opensc procps
    yubihsm-pkcs11 libtpm2-pkcs11-1 libtpm2-pkcs11-tools swtpm swtpm-tools tpm2-tools libtss2-tcti-swtpm0t64"
CHECKOUT=$(cd "$(dirname "$0")/../.." && pwd)
BUNDLE=/etc/ssl/certs/ca-certificates.crt
# What pip installs there: no service manager runs in it, and style and types are checked outside.
WANTED='
import sys, tomllib
said = tomllib.load(open(sys.argv[1], "rb"))["project"]
names = said["dependencies"] + said["optional-dependencies"]["test"]
print(*(n for n in names if not n.startswith(("systemd-python", "mypy", "ruff"))), sep="\n")
'

# Run by a shell in namespaces of its own.
ENTER='
    checkout=$1 root=$2 access=$3 out=$4
    shift 4
    mount --bind "$root" "$root"
    mount --bind "$checkout" "$root/checkout"
    mount -o remount,bind,ro "$root/checkout"
    mount --bind "$out" "$root/out"
    mount -t proc proc "$root/proc"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    mkdir -m 1777 "$root/dev/shm"
    for node in null zero full random urandom; do
        : >"$root/dev/$node"
        mount --bind "/dev/$node" "$root/dev/$node"
    done
    # swtpm_setup keeps the authority of its endorsement certificates there.
    mount -t tmpfs -o mode=755 tmpfs "$root/var/lib/swtpm-localca"
    [ "$access" = rw ] || mount -o remount,bind,ro "$root"
    export HOME=/tmp LANG=C.UTF-8 TMPDIR=/tmp PYTHONDONTWRITEBYTECODE=1 PATH=/opt/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin
    unset VIRTUAL_ENV PYTHONHOME PYTHONPATH PIP_FIND_LINKS
    exec chroot "$root" sh -c "cd /checkout && exec \"\$@\"" sh "$@"
'

usage() {
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 64
}

skip() {
    echo "SKIPPED, THE DEBIAN 13 ROOT IS NOT TESTED: $1" >&2
    exit 77
}

check() {
    [ "$(id -u)" = 0 ] || skip "it needs root"
    command -v mmdebstrap >/dev/null || skip "mmdebstrap is not installed (apt-get install mmdebstrap)"
    unshare --mount --pid --fork true 2>/dev/null || skip "no mount and process namespaces may be made here"
}

# What the root is made from; another recipe makes it anew.
recipe() {
    { echo 2 $PACKAGES; requirements; } | sha256sum | cut -d' ' -f1
}

requirements() {
    "${PYTHON:-python3}" -c "$WANTED" "$CHECKOUT/pyproject.toml"
}

make() {
    folder=$1
    exec 9>"$folder/lock" # until the script ends: no other may swap the root under it
    flock -w 900 9
    if [ "$(cat "$folder/root/.recipe" 2>/dev/null)" = "$(recipe)" ]; then
        return
    fi
    rm -rf "$folder/root" "$folder/new"
    echo "building a Debian 13 root in $folder, once" >&2
    # The way out of here (proxy, certificates) is the host's: apt's settings, then pip's.
    apt-config dump Acquire | grep -iE '^Acquire::(http|https|Check-|Retries)' >"$folder/apt.conf" || :
    # shellcheck disable=SC2086  # words on purpose
    mmdebstrap --quiet --mode=root --variant=minbase --aptopt="$folder/apt.conf" \
        --include="$(echo $PACKAGES | tr ' ' ',')" trixie "$folder/new" "$(mirror)"
    mkdir "$folder/new/checkout" "$folder/new/out"
    for file in /etc/pip.conf /etc/resolv.conf $BUNDLE; do
        [ ! -e "$file" ] || cp -L "$file" "$folder/new$file"
    done
    requirements >"$folder/new/requirements.txt"
    inside "$folder/new" rw "$folder" sh -c 'python3 -m venv /opt/venv &&
        /opt/venv/bin/python -m pip install -q --disable-pip-version-check -r /requirements.txt &&
        echo /checkout >$(echo /opt/venv/lib/python3.*/site-packages)/checkout.pth'
    recipe >"$folder/new/.recipe"
    mv "$folder/new" "$folder/root"
}

# Where the host has its Debian from, else where everybody has.
mirror() {
    found=$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Created-By: Packages' 2>/dev/null |
        grep -m1 '/debian/*$' || :)
    echo "${found:-http://deb.debian.org/debian}"
}

# inside ROOT rw|ro OUT COMMAND...: mounts and processes are those of namespaces, and end with them.
inside() {
    unshare --mount --pid --fork --propagation private sh -euc "$ENTER" sh "$CHECKOUT" "$@" </dev/null &
    outside=$!
    # unshare does not listen to these signals; all in there ends with its first process.
    trap 'kill -KILL $(cat /proc/$outside/task/$outside/children); exit 143' HUP INT TERM
    status=0
    wait $outside || status=$?
    trap - HUP INT TERM
    return $status
}

[ $# -ge 2 ] || usage
action=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)
case $action in
make)
    check
    make "$folder"
    ;;
run)
    [ $# -ge 4 ] || usage
    check
    out=$3
    shift 3
    make "$folder"
    exec 9>&-
    inside "$folder/root" ro "$out" "$@"
    ;;
*) usage ;;
esac
