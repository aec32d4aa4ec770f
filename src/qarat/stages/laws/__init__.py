"""Laws: what a larger model, another ratio or another block size will cost, fitted to measurements.

`tables` reads measurements, `forms` holds one functional form a file, `points` brings the two together, `estimation`
finds coefficients, `resampling` their intervals, `fitting` puts these into a `Law`, and `prediction` asks it.

Everything is fitted in the logarithm of the response: loss increases span two decades, and a law that is off by a tenth
should count alike at both ends. Points at or near zero have no logarithm worth the name; they count by their difference
from the law over their standard error, so a point that is zero within its error holds the law down and no more.
"""
