#!/usr/bin/env bash
# A page of Panel with a skeleton of its own (pn.Template) lost the style sheets of the theme from 1.9 to 1.10: in the
# default design widgets came with default.css and native.css, and come with neither now, so that the colours which their
# own sheets ask for are nowhere, and the text of a "primary" button is white on nothing.
# Seen with Panel 1.9.4 (Bokeh 3.9.2) and 1.10.0 (Bokeh 3.10.2, its lowest is 3.10): the theme's sheets of two buttons.
# What helps: the design Native, and the colours (--panel-primary-color and the like) in the skeleton's own :root.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/page.py" <<'PYTHON'
import panel as pn
from bokeh.document import Document
from bokeh.models import Button

for design in (pn.theme.Design, pn.theme.Native):
    page = pn.Template("{% extends base %}{% block contents %}{{ embed(roots.main) }}{% endblock %}", design=design)
    buttons = [pn.widgets.Button(name=name, button_type="primary") for name in ("Save", "Open")]
    page.add_panel("main", pn.Column(*buttons))
    models = page.server_doc(Document()).select({"type": Button})
    sheets = [[str(getattr(s, "url", "")).rpartition("/theme/")[2] for s in model.stylesheets] for model in models]
    print(pn.__version__, design.__name__, sorted([s for s in of if s.endswith(".css") and "/" not in s] for of in sheets))
PYTHON
said=
for versions in "panel==1.9.4 bokeh==3.9.2" "panel==1.10.0 bokeh==3.10.2"; do
    python3 -m venv --clear "$folder/env"
    "$folder/env/bin/pip" install --quiet --disable-pip-version-check $versions
    said+=$("$folder/env/bin/python" -W ignore "$folder/page.py")$'\n'
done
echo "$said"
[[ $said == *"1.9.4 Design [['default.css', 'native.css'], ['default.css', 'native.css']]"* ]]
[[ $said == *"1.10.0 Design [[], []]"* ]]
[[ $said == *"1.9.4 Native [['native.css'], ['native.css']]"* && $said == *"1.10.0 Native [['native.css'], ['native.css']]"* ]]
