"""Process groups: how ranks are started, run their steps, report each, and are ended when they die or hang.

    with Supervisor(brief, "fork", on_outcome) as supervisor:
        supervisor.run(jobs, slots=2)

`channel` is the protocol between ranks and supervisor, `transport` carries it. Nothing is imported here: the supervisor imports
torch, the protocol does not.
"""
