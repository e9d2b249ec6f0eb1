# Judges the native calls of a test run: a call of over 1 ms on a normal scheduler fails it, unless
# the machine was just as slow at the control, a loop of a few microseconds that follows each call
# in the same thread. The host of a virtual machine stops it now and then, and what was running is
# charged with the stop.
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
    # Stops hit calls and control in proportion to their time. Three standard deviations, by
    # Poisson, are allowed for chance; none at all when the control was never slow.
    stops = control_slow > 0 ? control_slow + 3 * sqrt(control_slow) + 3 : 0
    allowed = int(stops * call_ns / control_ns)
    printf "over 1 ms on normal schedulers: %d calls in %.2f s of calls, %d controls in %.2f s of control: at most %d allowed\n",
        call_slow, call_ns / 1e9, control_slow, control_ns / 1e9, allowed
    exit call_slow > allowed
}
