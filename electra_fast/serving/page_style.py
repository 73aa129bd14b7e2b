"""The look of the page at /, light and dark."""

STYLE = """
:root{color-scheme:light dark;--page:#fffefb;--text:#1d1b18;--soft:#67635a;--line:#dedacf;--field:#fff;--accent:#00695f;
  --on-accent:#fff;--bar:#00897b;--wrong:#a3231a;--k0:#cfe3fb;--k1:#fbdcb4;--k2:#d3ecc4;--k3:#f3d0e6;--k4:#e2d6f8;
  --k5:#f7e7a1}
*{box-sizing:border-box}
body{margin:0 auto;padding:2.5rem 1.25rem 5rem;max-width:44rem;background:var(--page);color:var(--text);
  font:1rem/1.5 system-ui,sans-serif}
h1{margin:0;font-size:1.5rem;line-height:1.25;overflow-wrap:anywhere}
h2{margin:2rem 0 0;font-size:1.125rem}
a{color:var(--accent)}
.about{margin:.25rem 0 1rem;color:var(--soft);font-size:.875rem}
label{display:block;margin:.75rem 0 .25rem;font-size:.875rem;font-weight:600}
textarea{display:block;width:100%;padding:.5rem .625rem;border:1px solid #8a857a;border-radius:.375rem;
  background:var(--field);color:inherit;font:inherit;resize:vertical}
textarea:focus-visible,button:focus-visible,summary:focus-visible,pre:focus-visible,a:focus-visible{
  outline:3px solid var(--accent);outline-offset:2px}
.do{margin:.75rem 0 0;color:var(--soft);font-size:.75rem}
kbd{font:inherit}
button{margin-right:.5rem;padding:.5rem 1rem;border:0;border-radius:.375rem;background:var(--accent);
  color:var(--on-accent);font:600 1rem/1.5 system-ui,sans-serif;cursor:pointer}
button[aria-disabled=true]{opacity:.6;cursor:progress}
.reply{margin-top:1.25rem;overflow-wrap:anywhere}
.reply:empty{margin:0}
.error{padding:.5rem .75rem;border-left:4px solid var(--wrong);color:var(--wrong);font-weight:600}
.main{margin:0 0 .5rem;font-size:1.25rem;font-weight:600}
.text{margin:.5rem 0;font-size:1.125rem;line-height:2;white-space:pre-wrap}
table{width:100%;border-collapse:collapse;font-size:.875rem}
th,td{padding:.25rem .5rem;border-bottom:1px solid var(--line);text-align:left;font-weight:400;vertical-align:top}
thead th{color:var(--soft)}
thead th:last-child,td.figure{width:7rem;text-align:right;font-variant-numeric:tabular-nums}
td.bar{width:45%}
meter{display:block;width:100%;height:1.25rem;accent-color:var(--accent)}
meter::-webkit-meter-optimum-value{background:var(--bar)}
meter::-moz-meter-bar{background:var(--bar)}
.best th,.best td{font-weight:700}
mark{padding:.15em .2em;border-radius:.2em;background:var(--k0);color:inherit}
mark small{margin-left:.35em;font-size:.7em;font-weight:600}
.k1{background:var(--k1)}.k2{background:var(--k2)}.k3{background:var(--k3)}.k4{background:var(--k4)}.k5{background:var(--k5)}
.r{text-decoration:underline .12em;text-underline-offset:.2em}
.w{position:relative;cursor:default}
.w:hover,.w:focus{outline:2px solid;outline-offset:2px;z-index:1}
.figures{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap;
  font:600 .875rem/1.4 system-ui,sans-serif;user-select:none}
.w:hover .figures,.w:focus .figures{left:0;bottom:calc(100% + .4rem);width:auto;height:auto;padding:.15rem .5rem;
  clip-path:none;background:var(--text);color:var(--page);border-radius:.25rem;pointer-events:none}
details{margin-top:1rem;font-size:.875rem}
pre{overflow:auto;max-height:24rem;padding:.75rem;border:1px solid var(--line);border-radius:.375rem;font-size:.8125rem}
@media (max-width:30rem){td.bar{display:none}body{padding:1.5rem 1rem 4rem}}
"""

DARK = (
    ":root{--page:#17181a;--text:#eceae4;--soft:#a6a196;--line:#3d3b36;--field:#1f2023;--accent:#5ec9ba;--on-accent:#10201d;"
    "--bar:#3fa796;--wrong:#ff9a8f;--k0:#1d3f63;--k1:#5d3d12;--k2:#2b4d1c;--k3:#5b2446;--k4:#412f66;--k5:#4d4310}"
)
