#!/bin/bash -l
# hpcbridge: runs the stages of one CI job inside its allocation. Needs bash and coreutils.
#
# Stages arrive in "box" as a file NNNN, committed by NNNN.ready (kind, bytes, SHA-256, stage, "end"). What a stage
# prints is cut into closed files NNNN.1, NNNN.2 … and "state" is replaced after each: so a reader that was away, or
# comes back under another process, misses no byte. "lease" is touched by the runner's host; when it is old, nobody is
# left who wants this allocation.
set +e +u
hpcbridge_umask=$(umask)
umask 077
home=@HOME@
box=$home/box
lease=@LEASE@ tick=@TICK@ beat=@BEAT@ kill_after=@KILL_AFTER@ chunk=@CHUNK@

seq=0 status=idle code=0 reason=none chunks=0 bytes=0 pid='' mode='' warned='' told='' late='' soon=0
told_at=$SECONDS looked_at=$SECONDS
exec {quiet}<> <(:)
nap() { read -rt "$1" -u "$quiet"; }
name() { printf -v "$1" '%s/%04d' "$box" "$2"; }

report() {
    local now="$seq $status $code $reason $chunks $bytes"
    [ "$now" = "$told" ] && [ $((SECONDS - told_at)) -lt "$beat" ] && return
    printf '%s\n' 'hpcbridge-agent 1' "seq $seq" "status $status" "code $code" "reason $reason" "chunks $chunks" \
        "bytes $bytes" "beat $SECONDS" "node ${HOSTNAME:-?}" end >"$box/.state" 2>/dev/null &&
        mv -f -- "$box/.state" "$box/state" && told=$now told_at=$SECONDS
}

# Closes new output into numbered files. dd copies bytes, whatever they are.
ship() {
    local size n file
    name file "$seq"
    size=$(stat -c %s -- "$file.out" 2>/dev/null) || return
    while [ "$bytes" -lt "$size" ]; do
        n=$((size - bytes))
        [ "$n" -gt "$chunk" ] && n=$chunk
        dd if="$file.out" of="$box/.chunk" bs=64K iflag=skip_bytes,count_bytes skip="$bytes" count="$n" status=none &&
            mv -f -- "$box/.chunk" "$file.$((chunks + 1))" || { nap 1; return; }
        chunks=$((chunks + 1)) bytes=$((bytes + n))
        report
    done
}

# Every process of the stage's session, whatever groups it has made: a shell's own group is not all of it.
in_session() {
    local stat line fields
    found=()
    for stat in /proc/[0-9]*/stat; do
        { read -r line <"$stat"; } 2>/dev/null || continue
        read -ra fields <<<"${line##*) }"
        [ "${fields[3]}" = "$1" ] && [ "${fields[0]}" != Z ] && stat=${stat#/proc/} && found+=("${stat%/stat}")
    done
}

stop_stage() {
    [ -n "$pid" ] || return
    reason=$1
    local since=$SECONDS
    in_session "$pid"
    kill -TERM -- "-$pid" "${found[@]}" 2>/dev/null
    while in_session "$pid"; [ ${#found[@]} -gt 0 ]; do
        [ $((SECONDS - since)) -ge "$kill_after" ] && kill -KILL -- "-$pid" "${found[@]}" 2>/dev/null
        ship
        nap 0.1
    done
    finish
}

finish() {
    wait "$pid"
    code=$?
    pid=''
    ship
    name file "$seq"
    rm -f -- "$file" "$file.out"
    status=done
    report
}

leave() {
    trap '' TERM USR1 HUP
    stop_stage "$1"
    status=ended reason=$1
    report
    [ "$2" = keep ] && exit 0
    cd /
    rm -rf -- "$home"
    exit "$3"
}

# Runs file NNNN. It is gone from the disk before its first line runs: every script holds every secret.
start() {
    local file script
    name file "$seq"
    : >"$file.out"
    if [ "$1" = wide ]; then
        # Every task of the allocation reads it, so it stays (0600, in a closed directory) until they have ended.
        chmod 600 -- "$file"
        (umask "$hpcbridge_umask"; exec setsid srun bash "$file" </dev/null >>"$file.out" 2>&1 {quiet}>&-) &
        pid=$!
    else
        exec {script}<"$file"
        rm -f -- "$file"
        (umask "$hpcbridge_umask"; exec setsid bash "/dev/fd/$script" </dev/null >>"$file.out" 2>&1 {quiet}>&-) &
        pid=$!
        exec {script}>&-
    fi
    mode=$1 status=running code=0 reason=none chunks=0 bytes=0 soon=4
    report
}

# Takes the next committed file, if there is one. A half-written commit has no "end"; a damaged file is refused.
# Numbers may be left out: the other side counts on after a file that it could not send.
take() {
    local next='' file old ready kind size sum stage end
    for ready in "$box"/[0-9]*.ready; do  # listing the directory makes NFS look again
        file=${ready%.ready}
        case ${file##*/} in *[!0-9]*) continue ;; esac
        [ $((10#${file##*/})) -gt "$seq" ] || continue
        end=''
        { read -r kind size sum stage; read -r end; } 2>/dev/null <"$ready"
        [ "$end" = end ] && next=$((10#${file##*/})) && break
    done
    [ -n "$next" ] || return 1
    [ -n "$pid" ] && stop_stage superseded
    if [ "$(stat -c %s -- "$file" 2>/dev/null)" != "$size" ] ||
        [ "$(sha256sum 2>/dev/null <"$file" | cut -d ' ' -f 1)" != "$sum" ]; then
        # What the other side has written may not have reached this node yet.
        [ -z "$late" ] && late=$SECONDS
        [ $((SECONDS - late)) -lt 10 ] && return 1
        late='' seq=$next status=done code=0 reason=damaged chunks=0 bytes=0
        rm -f -- "$file" "$file.ready"
        report
        return
    fi
    late=''
    name old "$seq"
    rm -f -- "$old".[0-9]* "$file.ready"
    touch -- "$box/lease"  # who hands over wants it still
    seq=$next
    case $kind in
        stop) rm -f -- "$file"; leave stopped remove 0 ;;
        *) start "$kind" ;;
    esac
}

# Both times are the file system's own: clocks differ.
lease_is_over() {
    local now seen
    : >"$box/.clock"
    { read -r now; read -r seen; } < <(stat -c %Y -- "$box/.clock" "$box/lease" 2>/dev/null)
    [ -n "$seen" ] && [ $((now - seen)) -gt "$lease" ]
}

trap 'warned=1' USR1
trap 'leave terminated keep' TERM HUP
mkdir -p -- "$box" "$home/builds" && chmod 700 -- "$home" "$box" && cd -- "$home" || exit 73
[ -e "$box/abandoned" ] && leave abandoned remove 0
lease_is_over && leave lease remove 4
report
while :; do
    if [ -n "$pid" ]; then
        [ "$soon" -gt 0 ] || ship
        name file "$seq"
        cancels=("$file".cance[l])
        if [ -e "${cancels[0]}" ]; then
            stop_stage cancelled
        elif [ -n "$warned" ] && [ "$mode" != after ]; then
            stop_stage timelimit  # what is left of the time is for after_script and artifacts
        elif ! kill -0 "$pid" 2>/dev/null; then
            finish
        fi
    fi
    take
    report
    if [ $((SECONDS - looked_at)) -ge $((lease < 60 ? 1 : 10)) ]; then
        looked_at=$SECONDS
        [ -d "$box" ] || leave abandoned remove 0
        lease_is_over && leave lease remove 4
    fi
    if [ "$soon" -gt 0 ]; then  # most stages that are not the user's own are over at once, with one piece of output
        soon=$((soon - 1))
        nap 0.05
    else
        nap "$tick"
    fi
done
