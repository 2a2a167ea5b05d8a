"""sbatch's options as data: long and short names, which of them take a value, and which field sets them here."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: Options that take a value: long and short names.
_VALUED = """
--account/-A --acctg-freq --array/-a --bb --bbf --begin/-b --chdir/-D --cluster-constraint --clusters/-M --comment
--constraint/-C --container --container-id --core-spec/-S --cores-per-socket --cpu-freq --cpus-per-gpu
--cpus-per-task/-c --deadline --delay-boot --dependency/-d --distribution/-m --error/-e --exclude/-x --export
--export-file --extra --extra-node-info/-B --gid --gpu-bind --gpu-freq --gpus/-G --gpus-per-node --gpus-per-socket
--gpus-per-task --gres --gres-flags --hint --input/-i --job-name/-J --kill-on-invalid-dep --licenses/-L --mail-type
--mail-user --mcs-label --mem --mem-bind --mem-per-cpu --mem-per-gpu --mincpus --network --nodefile/-F
--nodelist/-w --nodes/-N --ntasks/-n --ntasks-per-core --ntasks-per-gpu --ntasks-per-node --ntasks-per-socket
--open-mode --output/-o --partition/-p --power --prefer --priority --profile
--qos/-q --reservation --segment --signal
--sockets-per-node --switches --thread-spec --threads-per-core --time/-t --time-min --tmp --tres-bind
--tres-per-task --uid --wait-all-nodes --wckey --workdir --wrap
"""
#: Options that take no value, or only one after an equals sign.
_FLAGS = """
--contiguous --exclusive --get-user-env --help/-h --hold/-H --ignore-pbs --immediate/-I --nice --no-kill/-k
--no-requeue --overcommit/-O --oversubscribe/-s --parsable --propagate --quiet/-Q --reboot --requeue --share
--spread-job --stepmgr --test-only --usage --use-min-nodes --verbose/-v --version/-V --wait/-W --x11
"""


def _names(text: str) -> dict[str, str]:
    return {long: short for long, _, short in (word.partition("/") for word in text.split())}


VALUED, FLAGS = _names(_VALUED), _names(_FLAGS)
_LONG = {short: long for long, short in (VALUED | FLAGS).items() if short}

#: Options that a field of the resources sets, and the field.
RESOURCE_OF = {
    "--cpus-per-task": "cpu_cores_per_process",
    "--gpus-per-task": "gpu_cores_per_process",
    "--mem": "memory",
    "--nodes": "node_count",
    "--ntasks": "process_count",
    "--ntasks-per-node": "processes_per_node",
    "--time": "duration",
}
#: Different names for the same setting: setting one of them replaces all others.
_ALIKE = {
    "--exclusive": "exclusive_node_use",
    "--oversubscribe": "exclusive_node_use",
    "--share": "exclusive_node_use",
    "--mem-per-cpu": "memory",
    "--mem-per-gpu": "memory",
    "--no-requeue": "--requeue",
    "--signal": "warn_before",
    "process_count": "processes",
    "processes_per_node": "processes",
    "--ntasks": "processes",
    "--ntasks-per-node": "processes",
}


def long_name(option: str) -> str:
    """The long name of an option that is given by its short name or by an abbreviation that sbatch accepts."""
    if re.fullmatch("--.+", option):
        full = [name for name in VALUED | FLAGS if name.startswith(option)]
        return full[0] if len(full) == 1 else option
    return _LONG.get(option, option)


def read_arguments(arguments: Iterable[str]) -> dict[str, str]:
    """Read options written as one argument each, `--qos=few` or `-qfew`, into values by long name."""
    found = {}
    for argument in arguments:
        name, _, value = argument.partition("=") if argument.startswith("--") else (argument[:2], "", argument[2:])
        found[long_name(name)] = value
    return found


def setting(name: str) -> str:
    """What an sbatch option or a resources field sets; equal for names that replace each other."""
    name = long_name(name)
    return _ALIKE.get(name) or RESOURCE_OF.get(name, name)
