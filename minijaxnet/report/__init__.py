"""Pictures and pages of what the three jobs found.

A picture is a function ``draw_...(axes, data)``: of a run in ``curves``, of a sweep in ``rates``, of a gradient check
in ``gradients``, of a benchmark in ``timing``, of a loss in ``weight`` and ``surface``, of a network in ``decisions``
and ``graph``. A page is made in three steps: ``record`` reads a run's folder, ``run_page`` (or ``runs_page``) makes
sections of it, and ``page`` draws them as HTML.
"""
