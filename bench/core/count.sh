#!/bin/sh
# Instructions of macula_core's hot functions, counted by callgrind and compared with those that are committed.
#
#   sh bench/core/count.sh PROGRAM [keep]
#
# The same compiler, locked dependencies and valgrind give the same counts, whatever else the machine does: with these,
# more than LIMIT per cent more instructions fail. Another compiler optimises otherwise, so then the difference is only
# shown. HashMaps have a random seed, which moves the counts of loads with large ones by some tenths of a per cent.
# "keep" writes the counts of now into the file.
set -eu

program=$1
kept=bench/core/instructions.tsv
now=_build/bench/instructions.tsv
limit=2

made_with() {
    echo "# $(rustc --version), $(valgrind --version), $(uname -m)"
}

count() {
    valgrind --tool=callgrind --callgrind-out-file=/dev/null --toggle-collect='*counted*' "$program" count "$1" 2>&1 |
        sed -n 's/^==[0-9]*== Collected : //p'
}

mkdir -p _build/bench
made_with >"$now"
for load in $("$program" list); do
    instructions=$(count "$load")
    [ "${instructions:-0}" -gt 0 ] || { echo "count.sh: callgrind counted nothing of $load" >&2 && exit 1; }
    printf '%s\t%s\n' "$load" "$instructions" >>"$now"
done

if [ "${2:-}" = keep ]; then
    cp "$now" "$kept"
    cat "$kept"
    exit 0
fi

awk -F '\t' -v limit="$limit" '
    /^#/ { made[FILENAME] = $0; next }
    FNR == NR { kept[$1] = $2; next }
    {
        if (!header++) printf "%-28s %12s %12s %9s\n", "instructions", "committed", "now", "change"
        if (!($1 in kept)) { printf "%-28s %12s %12d %9s\n", $1, "-", $2, "new"; next }
        change = 100 * ($2 - kept[$1]) / kept[$1]
        worse = change > limit
        failed += worse
        printf "%-28s %12d %12d %+8.2f%% %s\n", $1, kept[$1], $2, change, worse ? "MORE" : ""
    }
    END {
        same = made[ARGV[1]] == made[ARGV[2]]
        if (!same) printf "Not judged: committed with\n  %s\nnow\n  %s\n", made[ARGV[1]], made[ARGV[2]]
        if (failed && same) {
            printf "%d of them need over %d %% more than committed; ", failed, limit
            print "if that is meant: ./dev bench core keep"
            exit 1
        }
    }' "$kept" "$now"
