#!/bin/sh
# Builds the operators for this platform: native/prebuilt/<platform>-<arch>.so. Needs a C compiler; using milora does not.
set -eu
cd "$(dirname "$0")"
target=prebuilt/linux-x64.so
flags="-std=gnu11 -O3 -Wall -Wextra -Wno-missing-field-initializers -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno -fno-trapping-math -g0 -ffile-prefix-map=$PWD=."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p prebuilt
${CC:-cc} $flags -mavx2 -mfma -mf16c -c kernels.c -o "$work/avx2.o"
${CC:-cc} $flags -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c -mprefer-vector-width=512 -c kernels.c -o "$work/avx512.o"
for file in operators/*.c; do ${CC:-cc} $flags -c "$file" -o "$work/$(basename "$file" .c).o"; done
${CC:-cc} -shared -nostdlib -Wl,--build-id=none -Wl,-z,relro,-z,now -Wl,-soname,milora_operators.so -s "$work"/*.o -lgcc -o "$work/library"
mv "$work/library" "$target" # whole or not at all, also for processes that have it loaded
