"""`hedgerow up`: a whole fleet of real processes on one machine, watched, restarted and accounted for."""
