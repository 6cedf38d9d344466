"""Prints the trace hash of one storm: `python -m tests.simulation.storm_trace SEED`."""

import sys

from tests.simulation.trials import make_fleet, weather_the_storm


def main() -> None:
    fleet = make_fleet(int(sys.argv[1]), "exponential")
    weather_the_storm(fleet)
    sys.stdout.write(fleet.trace_hash + "\n")


if __name__ == "__main__":
    main()
