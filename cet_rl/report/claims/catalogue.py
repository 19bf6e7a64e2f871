"""All claims, in the order in which they are reported."""

from __future__ import annotations

from cet_rl.report.claims import own, rules, traces

CLAIMS = (*traces.CLAIMS, *rules.CLAIMS, *own.CLAIMS)
"""The two papers', then ours."""
