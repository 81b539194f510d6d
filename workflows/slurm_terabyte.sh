#!/usr/bin/env bash
# From a vendor's file of any size to the report, on a cluster with SLURM. Edit, then: sbatch workflows/slurm_terabyte.sh
# Submit it again when it was stopped, for whatever reason: it goes on with the first stage that is not finished.
#
# This job only drives: it starts, watches and cancels the jobs that compute. It needs little, but lives as long as
# all of them, including the time that they wait in the queue.
#SBATCH --job-name=tdm-run
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=1-00:00:00
#SBATCH --output=tdm-run-%j.log
#SBATCH --signal=B:TERM@120
set -euo pipefail

# The recipe (see docs/a-file-of-your-own.md) names the file of counts, the sites and the masks; the results go beside
# it. Both have to lie where every node sees them, on the parallel file system.
recipe=/path/on/the/parallel/file/system/recipe.toml
results=/path/on/the/parallel/file/system/results

# How tdm_dask was installed.
source "$HOME/tdm/bin/activate"

# Eight jobs of eight cores compute; a core needs about 1 GiB. Jobs that end are replaced, so that a walltime that the
# queue likes to fill is better than one that is long enough. --interface ib0 takes the fast network, where there is one.
# exec: so that SLURM's signal, two minutes before the end, reaches tdm, which then cancels its jobs.
exec tdm run "$recipe" --out "$results" \
    --slurm --partition=standard --workers=8 --cores=8 --memory=16GiB --walltime=02:00:00 --wait=12h
