# Judges the native calls of a test run: they fail it when they are over 1 ms on a normal scheduler
# more often than the control is, a loop of a few microseconds that follows each call in the same
# thread. The host of a virtual machine stops it now and then, and what was running is charged with
# the stop. Every slow call is shown, whatever the judgement.
#
# Input, tab-separated: function, scheduler, calls, max ns, total ns, calls over 1 ms.

{
    key = sprintf("%-20s %-9s", $1, $2)
    calls[key] += $3
    total[key] += $5
    slow[key] += $6
    if ($4 > max[key]) max[key] = $4
    if ($1 == "control") {
        control_ns += $5
        control_slow += $6
    } else if ($2 == "normal") {
        call_ns += $5
        call_slow += $6
    }
}

END {
    if (NR == 0) {
        print "nothing was recorded"
        exit 1
    }
    printf "%-20s %-9s %10s %9s %10s %10s\n", "native function", "scheduler", "calls", "mean us", "max us", "over 1 ms"
    for (key in calls) {
        row = sprintf("%s %10d %9.1f %10.1f %10d", key, calls[key], total[key] / calls[key] / 1000, max[key] / 1000, slow[key])
        print row | "sort"
    }
    close("sort")
    # Stops hit calls and control in proportion to their time, so how many of all fell on calls is
    # a binomial variable. So many or more by chance in one run of a thousand: then it is the calls.
    chance = tail(call_slow + control_slow, call_ns / (call_ns + control_ns), call_slow)
    printf "over 1 ms on normal schedulers: %d calls in %.2f s of calls, %d controls in %.2f s of control; by chance alone with probability %.4f\n",
        call_slow, call_ns / 1e9, control_slow, control_ns / 1e9, chance
    exit chance < 0.001
}

# The probability of `from` or more successes in n trials that succeed with probability p each.
function tail(n, p, from,    k, i, term, sum) {
    for (k = from; k <= n; k++) {
        term = 1
        for (i = 1; i <= k; i++) term *= (n - k + i) / i * p
        for (i = 1; i <= n - k; i++) term *= 1 - p
        sum += term
    }
    return sum
}
