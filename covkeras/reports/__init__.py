"""Every table, picture and page.

    pages                           tables for terminal, Markdown and HTML, figures, pages made of them
    results, shares                 a run's, or any certification log's: curves, tables, fidelity, p_A
    comparison                      methods against each other
    search                          trials, baselines, ablations
    diagnosis, diagnosis_pictures   a classifier, layer by layer (the paper's Table 2 and figures)

Reads results; computes none.
"""
