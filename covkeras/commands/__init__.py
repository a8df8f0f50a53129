"""The command `covkeras`, a module for each of its commands; those in training/ and serving/ are thin files.

    main                                        which command
    cli                                         a flag for every field of a recipe; errors as one line
    train certify report compare search diagnose attack noisy_labels export
    serve, serve_models, serve_rest, serve_grpc, page.html    the local server
    client, client_images, client_protos        asks it, or a TF-Serving, without TensorFlow

What is heavy is imported when a command works, not for its --help.
"""
