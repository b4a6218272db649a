#!/bin/bash
# Second stage, process 1 of the guest. Command line of the kernel: e2e.name=a e2e.n=1
export PATH=/run/e2e:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C TERM=dumb
for w in $(</proc/cmdline); do case $w in e2e.name=*) NAME=${w#*=};; e2e.n=*) N=${w#*=};; esac; done
mkdir -p /dev/pts /dev/shm /run/lock
mount -t devpts -o gid=5,mode=620 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs -o mode=1777 vartmp /var/tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
ln -sfn /proc/self/fd /dev/fd; ln -sfn /proc/self/mounts /etc/mtab
echo "$NAME" > /proc/sys/kernel/hostname
echo "127.0.0.1 localhost $NAME" > /etc/hosts
modprobe -a virtio_net virtio_blk virtio_rng virtiofs
mount -t virtiofs share /e2e || { echo "e2e: mount the shared folder"; poweroff -f; }
# Nothing of the shared folder is cached, so a program there would be read anew at each start.
cp /e2e/bin/* /run/e2e/
# eth0 is the data network, eth1 the management network: the order on the PCI bus
ip -batch - <<IP
link set dev lo up
link set dev eth0 up
link set dev eth1 up
addr add 10.77.0.$N/24 dev eth0
addr add 10.78.0.$N/24 dev eth1
IP
echo "e2e: $NAME is up after $(cut -d' ' -f1 /proc/uptime) s"
while :; do e2e-guest serve "10.78.0.$N:7"; sleep 1; done
