#!/bin/bash
# run.sh PROFILE OUT [NAME=VALUE ...]: build the notebook from the script and execute it; outputs go to OUT
cd "$(dirname "$0")/../.."
profile=$1; out=$2; shift 2
.venv/bin/python .draft/tools/build.py .draft/src/world_models_cartpole.py /tmp/build-$$.ipynb || exit 1
cp /tmp/build-$$.ipynb ./.tmp-$$.ipynb
env WM_PROFILE=$profile WM_NO_WIDGETS=1 TQDM_DISABLE=1 "$@" .venv/bin/jupyter nbconvert --to notebook --execute --ExecutePreprocessor.timeout=-1 --output-dir "$(dirname $out)" --output "$(basename $out)" .tmp-$$.ipynb 2>&1 | tail -40
rm -f .tmp-$$.ipynb
