"""The tabs of the app beside Compare, one file each. They are for operators: annotators get the Compare screen alone.

To add one: a module with ``NAME``, the words on the tab, and ``build(context)``, which makes Gradio components inside
the current ``gr.Blocks``. ``ORDER`` (50 when left out) sorts them.
"""
