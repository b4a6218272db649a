#!/bin/busybox sh
# First stage, in the initramfs: the host's root read-only over 9p, an overlay in
# memory on top of it, and on to guest.sh. The root itself is in memory, with the
# overlay's folders in their places: NFS cannot export an overlay, and NFSv4 begins
# at the root.
B=/bin/busybox
fail() { $B echo "e2e: $*"; $B poweroff -f; }
$B mount -t proc p /proc; $B mount -t sysfs s /sys; $B mount -t devtmpfs d /dev
if $B grep -qw e2e.probe /proc/cmdline; then
  $B echo "e2e: alive"                 # all that accel.go wants to know
  $B poweroff -f
fi
for m in /mod/*.ko; do $B insmod $m || fail "insmod $m"; done
P9=trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro
$B mount -t 9p -o $P9 root /ro || fail "mount the host's root"
$B mount -t tmpfs -o size=60%,mode=755 rw /rw
$B mkdir /rw/up /rw/work
$B mkdir /over
$B mount -t overlay -o lowerdir=/ro,upperdir=/rw/up,workdir=/rw/work root /over || fail "mount the overlay"
M=/over/usr/lib/modules; [ -L /over/lib ] || M=/over/lib/modules
$B mkdir -p $M
$B mount -t 9p -o $P9 modules $M || fail "mount the modules"
$B mount -t tmpfs -o mode=755 root /new
for f in /over/*; do
  d=/new/${f#/over/}
  case $d in /new/dev | /new/proc | /new/sys | /new/run | /new/srv | /new/tmp | /new/e2e) continue ;; esac
  if [ -L $f ]; then $B cp -a $f $d; elif [ -d $f ]; then $B mkdir $d && $B mount --rbind $f $d; fi
done
$B mkdir -p /new/dev /new/proc /new/sys /new/run /new/srv /new/tmp /new/e2e
$B mount -t tmpfs -o mode=755 run /new/run
$B mkdir /new/run/e2e
$B cp /e2e-guest /guest.sh /new/run/e2e/
for d in dev proc sys; do $B mount --move /$d /new/$d; done
exec $B switch_root /new /run/e2e/guest.sh
