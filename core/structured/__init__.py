"""Answers of a given form: what may come next of a JSON schema, a regex, a choice or a grammar. Torch-free.

`base` is what samplers see. `grammar` and `guidance` import the library, a tenth of a second: only what needs it does.
"""
