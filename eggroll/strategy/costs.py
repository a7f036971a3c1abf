from __future__ import annotations
from typing import Any
UpdateCost = Any
def update_costs(settings, plan): return {}
def cheapest(costs): return min(costs, key=lambda n: costs[n].seconds) if costs else "members"
