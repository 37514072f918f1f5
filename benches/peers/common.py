"""What the peers' scripts share: each ends by printing one line of JSON for benches/suite."""
import json
import time


def peak_kib():
    """Highest resident memory of this process so far. Unlike ru_maxrss it doesn't begin with the parent's."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def report(seconds, **more):
    print(json.dumps({"seconds": seconds, "peak_kib": peak_kib(), **more}))


def best(run, times):
    """Seconds of the fastest run."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
