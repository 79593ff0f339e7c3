#!/usr/bin/env bash
# Runs every GPU benchmark on one GPU; numbers and logs go to a folder, and those together to OUT.tar.gz.
#   OUT=numbers experiments/gpu_session.sh CIFAR10.npz    x_train, y_train, x_test, y_test, uint8 NHWC; planned for 25 minutes, not run yet
#   SMALL=1 OUT=numbers experiments/gpu_session.sh        tries all of it in minutes on a CPU, with the photographs
# Needs JAX, Flax, Optax, Orbax, ml-collections, chex, NumPy, scikit-learn, scikit-image, Pillow, tqdm, and for the report matplotlib and
# Jinja2; no TensorFlow, no network. PyTorch is the peer if it is installed. PYTHON names the interpreter. A part that fails, or takes
# longer than SECONDS_A_PART, does not stop the others; training goes on when the same command is given again.
#   PARTS="types step views train" selects parts, for several short sessions; or single ones, such as "step_50 train_knn".
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:?set OUT to the folder for the numbers}
cifar=${1:-}
parts=${PARTS:-types step views train}
seconds=${SECONDS_A_PART:-540}
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false
failed=()

part() { # NAME COMMAND...: runs it, with output on the screen and in NAME.log
  local name=$1
  shift
  [[ " $parts " == *" ${name%%_*} "* || " $parts " == *" $name "* ]] || return 0
  echo "== $name: $*"
  timeout --signal=TERM --kill-after=30 "$seconds" "$@" 2>&1 | tee "$out/$name.log" || failed+=("$name")
}

{
  date
  nvidia-smi -L 2>/dev/null
  "$python" -c 'import jax; print("JAX", jax.__version__, jax.devices())'
} | tee "$out/machine.log"
peer=$("$python" -c 'import torch' 2>/dev/null && echo "--peer torch")
steps=experiments/benchmarks/train_step.py
if [[ -n ${SMALL:-} ]]; then
  tiny="--projector 64 64 --steps 2 --turns 2"
  # shellcheck disable=SC2086
  part types "$python" $steps --cases resnet18@16:4 $tiny --check-steps 3 --out "$out/types.json"
  # shellcheck disable=SC2086
  part step_18 "$python" $steps --cases resnet18@16:4 $tiny $peer --no-compile --out "$out/step_18.json"
  # shellcheck disable=SC2086
  part step_50 "$python" $steps --cases resnet50@72:2 $tiny $peer --no-compile --out "$out/step_50.json"
  part views_224 "$python" experiments/benchmarks/device_views.py --size 72 --stored 96 --images 32 --batch-size 8 --blur \
    --batches 2 --turns 2 --out "$out/views_224.json"
  part views_32 "$python" experiments/benchmarks/device_views.py --images 256 --batch-size 64 --batches 2 --turns 2 \
    --out "$out/views_32.json"
  data=(--config=configs/quickstart.py --config.data.views=device --config.data.photographs.train_per_class=16
    --config.data.photographs.test_per_class=8)
  train=("${data[@]}" --config.batch_size=32 --config.monitor.batch_size=64 --config.epochs=2
    --config.log.tensorboard=False)
  profile=()
else
  # The first part also warms up the device.
  part types "$python" $steps --cases resnet18@32:512 --dtypes float32 bfloat16 --check-steps 50 \
    --out "$out/types.json"
  # shellcheck disable=SC2086
  part step_18 "$python" $steps --cases resnet18@32:256 resnet18@32:512 resnet18@32:2048 $peer \
    --out "$out/step_18.json"
  # shellcheck disable=SC2086
  part step_50 "$python" $steps --cases resnet50@224:128 resnet50@224:256 $peer --out "$out/step_50.json"
  part views_224 "$python" experiments/benchmarks/device_views.py --size 224 --stored 256 --images 2048 --batch-size 256 \
    --blur --out "$out/views_224.json"
  part views_32 "$python" experiments/benchmarks/device_views.py --images 50000 --out "$out/views_32.json"
  data=(--config=configs/resnet18_cifar10_fast.py "--config.data.data_dir=$cifar")
  train=("${data[@]}" --config.log.tensorboard=False --config.checkpoint.every_epochs=5)
  profile=(--config.profile.steps=20 --config.profile.after=200)
  [[ -n $cifar ]] || { echo "no .npz of CIFAR-10 was given, so training is skipped"; parts=${parts/train/}; }
fi
part train "$python" main.py "${train[@]}" "${profile[@]}" "--workdir=$out/run"
part train_linear "$python" main.py "${data[@]}" --config.task=linear --config.linear.cached=True \
  "--config.init_from=$out/run" "--workdir=$out/linear"
part train_knn "$python" main.py "${data[@]}" --config.task=knn "--config.init_from=$out/run" "--workdir=$out/knn"
if [[ " $parts " == *" train"* ]]; then
  cp "$out"/run/{metrics.jsonl,pretrain.json} "$out/linear/linear.json" "$out/knn/knn.json" "$out/" 2>/dev/null ||
    failed+=("results of the training")
fi
tar -C "$(dirname "$out")" --exclude="$(basename "$out")"/{run,linear,knn} -czf "$out.tar.gz" "$(basename "$out")"
if ((${#failed[@]})); then
  echo "failed: ${failed[*]}; see the logs in $out"
  exit 1
fi
echo "all numbers are in $out"
