#!/bin/bash
# hpcbridge: stands for gitlab-runner on the runner's host. What uploaders pack is on the system: it is asked for first.
set -u
ask=$HPCBRIDGE_SHIM/ask.$$ answer=$HPCBRIDGE_SHIM/answer.$$
case ${1:-} in
    artifacts-uploader | cache-archiver)
        (umask 077; printf '%s\0' "$PWD" "$@" >"$ask.new") && mv -f -- "$ask.new" "$ask" || exit 1
        while [ ! -e "$answer" ]; do sleep 0.05; done
        read -r verdict <"$answer"
        [ "$verdict" = go ] || exit 1
        ;;
esac
exec "$HPCBRIDGE_RUNNER" "$@"
