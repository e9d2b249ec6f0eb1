# Sourced by run.sh: how many cases passed, failed and were skipped, in the words of those who ran them.
# shellcheck shell=sh

# count_cases PART LOG BUILD: what `./dev test PART` said there, and left below that _build, as "ok failed skipped".
count_cases() {
    case $1 in
    unit) count_eunit "$2" ;;
    dist) count_common_test "$3/test/logs" ;;
    release) count_steps "$2" ;;
    esac
}

# "All 3 tests passed.", "Test passed." or "Failed: 1.  Skipped: 0.  Passed: 2."; cancelled groups are not counted there.
count_eunit() {
    awk '
        /^ *All [0-9]+ tests passed/ { ok = $2 }
        /^ *Test passed/ { ok = 1 }
        /^ *Failed: [0-9]+\. *Skipped: [0-9]+\. *Passed: [0-9]+\./ { failed = $2 + 0; skipped = $4 + 0; ok = $6 + 0 }
        /^One or more tests were cancelled/ { failed++ }
        END { print ok + 0, failed + 0, skipped + 0 }' "$1"
}

count_common_test() {
    find "$1" -name suite.log -exec cat {} + 2>/dev/null | awk '
        $1 == "=successful" { ok += $2 }
        $1 == "=failed" { failed += $2 }
        $1 == "=user_skipped" || $1 == "=auto_skipped" { skipped += $2 }
        END { print ok + 0, failed + 0, skipped + 0 }'
}

# Fixtures, as ./dev sums them up.
count_steps() {
    awk '
        /^== summary/ { summary = 1 }
        summary && $2 == "passed" && $1 != "build-plain" { ok++ }
        summary && $2 == "FAILED" { failed++ }
        END { print ok + 0, failed + 0, 0 }' "$1"
}
