#!/bin/sh
# rootfs.sh DIR: a root file system in DIR with node, a shell, a few tools to look around, and the libraries that these
# and ONNX Runtime need; nothing else: no package manager, no set-uid file. Runs in the build stage of deploy/Dockerfile.
set -eu
root=$1
programs="$(command -v node) $(command -v sh) $(for p in ls cat env id sleep taskset hostname; do command -v $p; done)"
libraries=$(ldd $programs "$(find node_modules/onnxruntime-node/bin -name 'libonnxruntime.so*')" | grep -o '/[^ :]*\.so[^ ]*' | sort -u)
# Loaded by name when a host name is looked up.
libraries="$libraries $(ls /lib/*-linux-gnu/libnss_dns.so.2 /lib/*-linux-gnu/libnss_files.so.2 /lib/*-linux-gnu/libresolv.so.2 2>/dev/null || true)"

mkdir -p "$root/usr/bin" "$root/usr/lib" "$root/usr/local/bin" "$root/etc" "$root/tmp" "$root/cache" "$root/var/lib/dpkg/status.d"
ln -s usr/bin "$root/bin"
ln -s usr/lib "$root/lib"
[ ! -e /lib64 ] || { ln -s usr/lib64 "$root/lib64"; mkdir -p "$root/usr/lib64"; }
for file in $programs $libraries; do
  case $file in
    */libonnxruntime.so*) ;; # stays where onnxruntime-node looks for it
    *) mkdir -p "$root$(dirname "$file")" && cp -L "$file" "$root$file" ;;
  esac
done
chmod 1777 "$root/tmp"
chown 10001:10001 "$root/cache"
echo 'moesh:x:10001:10001::/tmp:/bin/sh' >"$root/etc/passwd"
echo 'moesh:x:10001:' >"$root/etc/group"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
cp -L /etc/os-release "$root/etc/os-release"
printf '#!/bin/sh\nexec node --heap-growing-percent=100 --max-semi-space-size=2 --invocation-count-for-maglev=100 --invocation-count-for-turbofan=600 /app/services/cli/main.ts "$@"\n' >"$root/usr/local/bin/moesh"
chmod 755 "$root/usr/local/bin/moesh"
# What scanners read to know which versions of the libraries are inside.
for package in libc6 libstdc++6 libgcc-s1 dash coreutils hostname util-linux; do
  dpkg-query -s "$package" >"$root/var/lib/dpkg/status.d/$package" 2>/dev/null || rm -f "$root/var/lib/dpkg/status.d/$package"
done
