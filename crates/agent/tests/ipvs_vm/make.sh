#!/bin/sh
# Makes what the IPVS test boots: a stock Debian kernel and an initramfs with this test program in it, and the whole program
# where there is one.
# usage: make.sh CACHE_DIRECTORY TEST_PROGRAM OUTPUT_DIRECTORY [QUORATE]
# The kernel package is downloaded once (apt-get download) and unpacked into the cache, never installed.
# Exit code 77: something needed is missing; the last line says what.
set -eu
cache=$1 program=$2 out=$3 quorate=${4:-}

missing() { echo "$*"; exit 77; }
for tool in apt-get dpkg depmod busybox ipvsadm nft ip gzip ldd; do
    command -v "$tool" >/dev/null || missing "$tool is not installed"
done

mkdir -p "$cache" "$out"
if ! ls "$cache"/kernel/boot/vmlinuz-* >/dev/null 2>&1; then
    package=$(apt-cache depends linux-image-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-.*\)$/\1/p' | head -1)
    [ -n "$package" ] || missing "apt knows no package linux-image-amd64"
    (cd "$cache" && apt-get -q download "$package" >/dev/null 2>&1) || missing "cannot download $package"
    rm -rf "$cache/unpacking" && mkdir "$cache/unpacking"
    dpkg -x "$cache/$package"_*.deb "$cache/unpacking"
    mv "$cache/unpacking" "$cache/kernel"
    rm -f "$cache/$package"_*.deb
fi
kernel=$(ls "$cache"/kernel/boot/vmlinuz-* | head -1)
version=${kernel##*/vmlinuz-}
modules=$cache/kernel/lib/modules/$version

root=$out/root
rm -rf "$root"
mkdir -p "$root"/bin "$root"/sbin "$root"/usr/bin "$root"/usr/sbin "$root"/proc "$root"/sys "$root"/dev "$root"/run \
    "$root"/tmp "$root"/etc "$root/lib/modules/$version/kernel"

# Modules: what IPVS, address translation, namespaces and socket listing need, with all they depend on.
[ -s "$modules/modules.dep" ] || depmod -b "$cache/kernel" "$version"
for name in crc32c_generic ip_vs ip_vs_rr ip_vs_wrr ip_vs_lc ip_vs_wlc ip_vs_sh ip_vs_mh nf_conntrack nf_tables nft_ct nft_masq nft_nat \
    nft_chain_nat nft_reject nft_reject_ipv4 veth bridge dummy tcp_diag inet_diag nfnetlink; do
    line=$(grep "/$name.ko:" "$modules/modules.dep") || missing "the kernel has no module $name"
    for file in $(echo "$line" | tr -d :); do
        mkdir -p "$root/lib/modules/$version/${file%/*}"
        cp "$modules/$file" "$root/lib/modules/$version/$file"
    done
done
cp "$modules/modules.order" "$modules/modules.builtin" "$modules/modules.builtin.modinfo" "$root/lib/modules/$version/"
depmod -b "$root" "$version"

# Programs with their libraries.
with_libraries() {
    to=$2
    cp "$1" "$root$to"
    ldd "$1" 2>/dev/null | grep -o '/[^ ]*' | while read -r library; do
        mkdir -p "$root${library%/*}"
        cp -L "$library" "$root$library"
    done
}
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in sh mount umount modprobe kill timeout cat ls mkdir poweroff dmesg sleep; do
    ln -sf /bin/busybox "$root/bin/$applet"
done
ln -sf /bin/busybox "$root/sbin/modprobe"
with_libraries "$(command -v ip)" /usr/sbin/ip
with_libraries "$(command -v nft)" /usr/sbin/nft
with_libraries "$(command -v ipvsadm)" /usr/sbin/ipvsadm
with_libraries "$program" /test
[ -z "$quorate" ] || with_libraries "$quorate" /quorate

cat > "$root/init" <<'INIT'
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
for module in crc32c_generic veth bridge ip_vs tcp_diag nft_masq nft_chain_nat nft_ct nft_reject_ipv4; do modprobe $module; done
echo "--- $(cat /proc/version)"
[ ! -x /quorate ] || export QUORATE=/quorate
QT_ROLE=guest /test
echo "--- guest exit code $?"
poweroff -f
INIT
chmod +x "$root/init"
(cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null) | gzip -1 > "$out/initramfs.gz"
rm -rf "$root"
ln -sf "$kernel" "$out/vmlinuz"
