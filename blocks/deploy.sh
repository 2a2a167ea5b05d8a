#!/bin/sh
# Registers the blocks of facility files, makes the work pool, and deploys all of prefect.yaml; again and again:
#   blocks/deploy.sh blocks/local.yaml blocks/perlmutter.yaml
set -eu
cd "$(dirname "$0")/.."
python blocks/register.py --overwrite "$@"
prefect work-pool create beamline --type process --overwrite
prefect --no-prompt deploy --all
