"""The only user of ``torch.distributed``: ranks, collectives and DDP (``world.py``), where they
meet after a restart (``meeting.py``), operations on tensors that may be sharded by rows
(``rows.py``), FSDP2 wrapping (``shards.py``), layers of a sharded model gathered one at a time
(``gather.py``), tensors lent to one process each (``lend.py``), and which process holds what,
without torch (``deal.py``).
"""
