#!/usr/bin/env bash
# Tries what a user of the wheel has, in the current folder: demo, train, compare, tune, sweep, check, render, share, report.
#   scripts/try_wheel.sh BIN      (the folder of the environment's programs)
set -euo pipefail
bin=$(cd "$1" && pwd)
out=$(mktemp -d "$PWD/tried.XXXXXX")
bptt() {
    echo "bptt $*"
    "$bin/bptt" "$@" >"$out/log" 2>&1 || { cat "$out/log"; echo "failed: bptt $*" >&2; exit 1; }
}

"$bin/python" -c 'import sys, bptt_envs; assert sys.prefix in bptt_envs.__file__, bptt_envs.__file__'
tiny=(--train-states 16 --batch-size 8 --test-states 16 --epochs 2)
bptt envs DiffCartPole-v0
bptt demo --share 0.02 --seeds 0 --out "$out/demo"
bptt train "${tiny[@]}" --record pictures diagnostics --out "$out/run"
bptt evaluate "$out/run"
bptt compare --methods C PPO zero --seeds 0 --steps 20000 --evaluations 2 --out "$out/versus"
bptt tune --methods C --trials 2 --steps 6400 --out "$out/tuned"
bptt check DiffCartPole-v0
bptt render "$out/run" --out "$out/episode.png"
bptt sweep --methods C --grid clip=none,norm --seeds 0 --steps 6400 --test-states 16 --out "$out/sweep"
bptt share "$out/run" --out "$out/model"
bptt evaluate "$out/model"
"$bin/python" -c 'import sys; from bptt_trainers import load_pretrained; load_pretrained(sys.argv[1])' "$out/model"
bptt report "$out/run" "$out/versus" "$out/sweep" --out "$out/report.html"
echo "the wheel does what it should: $out"
