"""Colours and type of the page and of its pictures, light and dark.

The colours of the kinds are Okabe and Ito's, which colour-blind readers can tell apart; lines also
carry their names.
"""

LIGHT = """--ground:#fff;--paper:#f6f5f2;--ink:#1c1d21;--soft:#5f636d;--rule:#e3e1dc;--grid:#ecebe7;
--after:#0b5fa5;--attention:#c4500a;--ffn:#0072b2;--hidden:#007a59;--spare:#a8437f;--spare2:#8a6400;
--good:#0a7a4b;--bad:#b3261e;--warn:#8a5a00;--warnback:#fff6e0;--badback:#fdecea"""
DARK = """--ground:#1b1d22;--paper:#131417;--ink:#eceae6;--soft:#a2a6b0;--rule:#33363d;
--grid:#2a2d33;--after:#6db6f2;--attention:#ff9a5c;--ffn:#56b4e9;--hidden:#4fcf9f;--spare:#e08fc1;--spare2:#e8b84a;
--good:#5fd39b;--bad:#ff8f85;--warn:#f2c14e;--warnback:#2e2713;--badback:#3a1d1b"""

_TONES = {
    **{name: name for name in ("after", "attention", "ffn", "hidden", "spare", "spare2")},
    "loss": "after",
    "dense": "ink",
    "speed": "hidden",
    "rate": "spare",
}
_SHAPES = """.pic{font-family:ui-sans-serif,system-ui,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
.pic text{font-size:12px;fill:var(--ink)}.pic .tick,.pic .unit{fill:var(--soft)}
.pic .title{font-size:15px;font-weight:650}.pic .unit{font-size:12px;font-weight:400}
.pic .name{font-weight:600}.pic .strong{fill:var(--ink);font-weight:650}
.pic path{fill:none}.pic .grid{stroke:var(--grid)}.pic .axis{stroke:var(--soft);opacity:.6}
.pic .line{stroke:currentColor;stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}
.pic .line.faint{stroke-width:1;opacity:.32}
.pic .line.attention{stroke-dasharray:8 4}.pic .line.hidden{stroke-dasharray:.1 4.6}
.pic .line.spare{stroke-dasharray:10 4 .1 4}.pic .line.spare2{stroke-dasharray:4 5}
.pic .border{stroke:var(--soft);stroke-width:1;opacity:.75}.pic .stage{font-style:italic}
.pic .mark{stroke:var(--soft);opacity:.5;stroke-width:.8}
.pic .goal{stroke:var(--soft);stroke-width:1.3;stroke-dasharray:5 4}
.pic text.goal{stroke:none;fill:var(--soft)}
.pic .dot{fill:currentColor;stroke:var(--ground);stroke-width:1.5}
.pic .outline{fill:var(--grid);stroke:var(--soft);stroke-opacity:.55;stroke-width:.8}
.pic .again{stroke-width:1.1}.pic .shape{fill:currentColor;stroke:var(--ground);stroke-width:1.5}
.pic .error{stroke:currentColor;stroke-width:1.3;opacity:.7}
.pic .lead{stroke:var(--soft);stroke-width:.7;opacity:.7}
.pic .fill{fill:currentColor}.pic .ground{fill:var(--ground)}
.pic .spot rect{fill:transparent}.pic .spot .dot{opacity:0}
.pic .spot:hover .dot{opacity:1}.pic .spot:hover rect{fill:var(--soft);fill-opacity:.1}
"""
SHAPES = _SHAPES + "".join(
    f".pic .{name}{{color:var(--{tone})}}.pic text.{name}{{fill:var(--{tone})}}\n"
    for name, tone in _TONES.items()
)
PICTURE = (
    f".pic{{{LIGHT}}}\n@media(prefers-color-scheme:dark){{.pic{{{DARK}}}}}\n{SHAPES}"
).replace("<", "")

PAGE = f""":root{{color-scheme:light dark;{LIGHT}}}
@media(prefers-color-scheme:dark){{:root{{{DARK}}}}}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 ui-sans-serif,system-ui,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}}
main{{max-width:1120px;margin:0 auto;padding:40px 24px 64px}}
h1{{font-size:34px;line-height:1.15;margin:0 0 6px;letter-spacing:-.02em;overflow-wrap:anywhere}}
h2{{font-size:20px;margin:40px 0 14px;letter-spacing:-.01em}}
.sub,.small{{color:var(--soft);margin:0}}.small{{font-size:14px}}
.lead{{font-size:21px;line-height:1.45;margin:18px 0 26px;max-width:62ch}}
.cards,.grid,.two{{display:grid;gap:16px}}
.cards{{grid-template-columns:1fr 1.5fr 1fr}}.tall{{grid-row:span 2}}
@media(max-width:1080px){{.cards{{grid-template-columns:1fr 1.3fr}}}}
@media(max-width:560px){{.cards{{grid-template-columns:1fr}}}}
.grid,.two{{grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr))}}
.card,figure{{background:var(--ground);border:1px solid var(--rule);border-radius:12px;margin:0;
padding:18px 20px;min-width:0;break-inside:avoid}}
.card h3{{font-size:13px;font-weight:600;color:var(--soft);margin:0 0 6px}}
.big{{font-size:21px;white-space:nowrap;line-height:1.2;
font-weight:680;letter-spacing:-.02em;margin:0 0 4px;
font-variant-numeric:tabular-nums}}
.big .to{{color:var(--soft);font-weight:400}}
.good{{color:var(--good)}}.bad{{color:var(--bad)}}
.rows{{width:100%;border-collapse:collapse;font-variant-numeric:tabular-nums}}
.rows td,.rows th{{padding:3px 10px 3px 0;text-align:left;vertical-align:top;font-weight:400;
overflow-wrap:anywhere}}
.rows th{{color:var(--soft)}}.rows td:last-child{{padding-right:0}}
.cards .rows td{{font-size:17px;white-space:nowrap;overflow-wrap:break-word}}
.cards .rows td:first-child{{white-space:normal}}
.card .rows .change{{text-align:right;color:var(--soft)}}
.card .rows .now{{font-weight:680}}
.banner{{border-radius:12px;padding:14px 20px;margin:0 0 24px;border:1px solid var(--warn);
background:var(--warnback)}}.banner.failed{{border-color:var(--bad);background:var(--badback)}}
.banner p{{margin:0}}svg.pic{{display:block;width:100%;height:auto;overflow:visible}}
pre{{background:var(--ground);border:1px solid var(--rule);border-radius:12px;padding:16px 20px;
overflow-x:auto;font:14px/1.55 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;
margin:0 0 10px}}
.said{{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}}.said .prompt{{color:var(--soft)}}
ul{{padding-left:20px;margin:0}}p.words{{max-width:75ch;margin:0 0 10px}}
details{{margin-top:12px}}summary{{cursor:pointer;font-weight:600;margin-bottom:12px}}
footer{{margin-top:44px;color:var(--soft);font-size:14px}}
@media(max-width:560px){{main{{padding:24px 14px 48px}}h1{{font-size:27px}}.lead{{font-size:18px}}
.card,figure{{padding:14px}}}}
@media print{{body{{background:#fff}}main{{max-width:none;padding:0}}.grid,.two{{
grid-template-columns:1fr 1fr}}details>*{{display:block}}}}
{SHAPES}"""
