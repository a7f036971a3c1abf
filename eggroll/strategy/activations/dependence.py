from __future__ import annotations
from dataclasses import dataclass
from typing import Any
import numpy as np
@dataclass(frozen=True)
class Along:
    axis: int
    reach: Any
    own: bool = True
Relation = tuple
def dependence(jaxpr, sites, output=0):
    out = jaxpr.jaxpr.outvars[output].aval.shape
    res=[]
    for i in sites:
        s=jaxpr.jaxpr.invars[i].aval.shape
        rel=[]
        for k,n in enumerate(out):
            ax=[a for a,m in enumerate(s) if m==n]
            rel.append(Along(ax[0], None if k==0 else np.triu(np.ones((n,n),bool))) if ax else None)
        res.append(tuple(rel))
    return res
