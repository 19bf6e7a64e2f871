#!/usr/bin/env bash
# The runs behind the learning curve and the table of arms in the README: 8 arms × 3 seeds, about 25 minutes on
# one core. Type it again after an interruption: finished runs are kept, the others go on.
#
#     bash docs/cartpole-8s.sh && python docs/figures.py collect runs/cartpole-8s/* && python docs/figures.py curves
set -euo pipefail
while read -r name options; do
    for seed in 0 1 2; do
        # shellcheck disable=SC2086  # options are words
        cet-rl train CartPole-v1 $options --seed "$seed" --resume --run-dir "runs/cartpole-8s/$name-$seed"
    done
done <<'ARMS'
none --trace none
perfect --delay 8 --trace perfect
et --delay 8 --trace et --decay 0.99
cet2 --delay 8 --order 2
cet5 --delay 8 --order 5
cet10 --delay 8 --order 10
sharp5 --delay 8 --trace sharp --order 5
legendre5 --delay 8 --trace legendre --order 5
ARMS
