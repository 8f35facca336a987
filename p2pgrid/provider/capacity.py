"""What is free right now, beside the offer (docs/spec/discovery.md, section 6): unsigned, and true for a moment."""

from __future__ import annotations

from p2pgrid.proto.messages import Offer
from p2pgrid.proto.record import Signed
from p2pgrid.proto.wire.offers import MAX_FREE, Capacity, ModelCapacity
from p2pgrid.provider.admission import Admission

NOTHING = Capacity(sequence=0, models=())


def capacity_of(offer: Signed[Offer] | None, admission: Admission) -> Capacity:
    """For each model of the offer, how many orders would be taken now; `NOTHING` where nothing is on sale."""
    if offer is None:
        return NOTHING
    return Capacity(
        sequence=offer.message.sequence,
        models=tuple(
            ModelCapacity(model=entry.model, free=min(admission.free(entry.model), MAX_FREE))
            for entry in offer.message.models
        ),
    )
