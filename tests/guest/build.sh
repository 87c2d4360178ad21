#!/bin/sh
# Builds the test guest: tests/guest/build.sh OUT
set -eu

if [ $# -ne 1 ]; then
    echo "usage: $0 OUT" >&2
    exit 2
fi
if ! command -v gcc >/dev/null 2>&1; then
    echo "$0: gcc is missing; the test guest is built with it (Debian: apt install gcc)" >&2
    exit 1
fi

here=$(dirname "$0")

# General registers only: some KVM hosts emulate the guest and know no SSE. The rest turns off what
# distributions switch on by default and a program without a system below it cannot have.
exec gcc -m64 -std=gnu11 -O2 -Wall -Wextra \
    -ffreestanding -fno-pic -fno-pie -no-pie -nostdlib -static \
    -mno-red-zone -mgeneral-regs-only -mcmodel=small \
    -fcf-protection=none -fno-stack-protector -fno-asynchronous-unwind-tables \
    -Wl,--build-id=none -Wl,-z,max-page-size=0x1000 -Wl,-z,noexecstack \
    -T "$here/guest.ld" -o "$1" \
    "$here"/*.S "$here"/*.c
