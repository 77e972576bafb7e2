# Run a command as the unprivileged user 65534, with directories that only root may enter opened to it in a mount
# namespace of its own: nothing on the machine changes.
#   unprivileged.sh SCRATCH BLOCKED:… KEEP:… COMMAND…
# SCRATCH: an empty directory; BLOCKED: directories that nobody else may enter; KEEP: what must stay visible below them.
set -e
scratch=$1 blocked=$2 keep=$3
shift 3
IFS=:
number=0
for path in $keep; do
    number=$((number + 1))
    mkdir -p "$scratch/keep$number"
    mount --rbind "$path" "$scratch/keep$number"
done
for path in $blocked; do mount -t tmpfs -o mode=0755 none "$path"; done
number=0
for path in $keep; do
    number=$((number + 1))
    mkdir -p "$path"
    mount --rbind "$scratch/keep$number" "$path"
done
exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
