# shellcheck shell=bash
# Sourced by a launcher with its own file and CONFIG: takes knobs from that file, which has a line `KNOB: value` each.
# What the environment sets wins.

known=$(sed -nE 's/^([A-Z_0-9]+)=\$\{\1:-\}.*/\1/p' "$1")
if [[ ! -f $2 ]]; then
    echo "error: CONFIG=$2 is not a file: write one with a line such as \`STEPS: 40\` for each knob" >&2
    exit 2
fi
number=0
while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    line=${line%$'\r'}
    [[ ! $line =~ ^[[:space:]]*(#.*)?$ ]] || continue
    if [[ ! $line =~ ^([A-Za-z_0-9]+):([[:space:]]+(.*))?$ ]]; then
        echo "error: CONFIG=$2, line $number: $line: write \`KNOB: value\`" >&2
        exit 2
    fi
    knob=${BASH_REMATCH[1]} value=${BASH_REMATCH[3]}
    if ! grep -qx -- "$knob" <<<"$known"; then
        echo "error: CONFIG=$2, line $number: $knob is not a knob of $1 (--help lists them)" >&2
        exit 2
    fi
    case $value in
    \"*\"*) value=${value#?} value=${value%%\"*} ;;
    \'*\'*) value=${value#?} value=${value%%\'*} ;;
    \#*) value= ;;
    *) value=${value%%[[:space:]]#*} value=${value%"${value##*[![:space:]]}"} ;;
    esac
    [[ -n ${!knob:-} ]] || printf -v "$knob" %s "$value"
done <"$2"
unset known number line knob value
