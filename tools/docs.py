"Build the HTML pages in `_docs` from the notebooks, or README.md from nbs/index.ipynb with `python tools/docs.py --readme`."
import base64, json, os, posixpath, re, shutil, sys
from functools import partial
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path
from urllib.parse import unquote

root = Path(__file__).resolve().parents[1]
nbs,proc,docs = root/'nbs',root/'_proc',root/'_docs'
pics = nbs/'images'
floors = ['Ground', 'Sources', 'Pipeline', 'Models', 'Training', 'Tasks', 'Use']
rooms = dict(course='Course', explain='Explanations', project='Project')
hidden = re.compile(r'^#\|\s*(hide|export\w*|default_exp|include:\s*false)\b', re.M)
link = re.compile(r'(\]\()([^)\s]+)((?: "[^"]*")?\))')
doc_link = re.compile(r'\[([^\]]*)\]\(/([^)\s]+)\)')
code_span = re.compile(r'(```.*?```|`[^`\n]+`)', re.S)

def read_cells(path): return json.loads(path.read_text(encoding='utf8'))['cells']
def text(o): return o if isinstance(o, str) else ''.join(o or ())
def outside(uri): return re.match(r'[a-z][a-z0-9+.-]*:|//|#', uri, re.I)

def relink(md, change):
    "`md` with `change(target)` in the place of each relative link or picture that is not in code."
    def one(m): return m[0] if outside(m[2]) else m[1] + change(m[2]) + m[3]
    parts = code_span.split(md) # every second one is code: a number stands for it while links are changed
    whole = link.sub(one, ''.join(f'\0{i}\0' if i%2 else p for i,p in enumerate(parts)))
    return re.sub('\0(\\d+)\0', lambda m: parts[int(m[1])], whole)

# README.md

def output_md(out, n): # `n`: names for the pictures to come
    "One output of a code cell as markdown; a picture becomes a file in nbs/images."
    if out['output_type'] == 'stream': return f"```\n{text(out['text']).rstrip()}\n```" if out['name'] == 'stdout' else ''
    data = out.get('data', {})
    for kind,ext in (('image/png','png'), ('image/jpeg','jpg')):
        if kind not in data: continue
        fn = pics/f'readme-{next(n)}.{ext}'
        pics.mkdir(exist_ok=True)
        fn.write_bytes(base64.b64decode(text(data[kind])))
        return f'![What the cell above shows](images/{fn.name})'
    if 'text/markdown' in data: return text(data['text/markdown']).strip()
    return f"```\n{text(data['text/plain']).rstrip()}\n```" if 'text/plain' in data else ''

def cell_md(cell, n):
    "One cell as markdown, without the cells and lines that are only for nbdev."
    src = text(cell['source']).strip()
    if cell['cell_type'] == 'markdown': return src
    if cell['cell_type'] != 'code' or hidden.search(src) or 'nbdev_export()' in src: return ''
    src = re.sub(r'^#\|.*\n?', '', src, flags=re.M).strip()
    return '\n\n'.join([f'```python\n{src}\n```'] * bool(src) + [output_md(o, n) for o in cell.get('outputs', ())])

def readme():
    "Write README.md, and the pictures it shows; a relative link that leads nowhere ends the program."
    for o in pics.glob('readme-*'): o.unlink()
    n = iter(range(1, 1000))
    cells = [cell_md(c, n) for c in read_cells(nbs/'index.ipynb')]
    md = '\n\n'.join(['<!-- Generated from nbs/index.ipynb by tools/docs.py: edit the notebook. -->', *filter(None, cells)])
    md = relink(re.sub(r'\n{3,}', '\n\n', md), lambda o: posixpath.normpath(posixpath.join('nbs', o)))
    lost = [o for o in targets(md) if not (root/unquote(o.split('#')[0])).exists()]
    if lost: sys.exit(f"nbs/index.ipynb links to what does not exist: {', '.join(lost)}. Mend the links there.")
    with open(root/'README.md', 'w', encoding='utf8', newline='\n') as f: f.write(md + '\n')

def targets(md):
    "The relative links of `md` that are not in code."
    res = []
    relink(md, lambda o: res.append(o) or o)
    return res

# HTML pages

def original(path):
    "The notebook at `path` as it was written: the cell with its title, and the ids of the cells that go into the module."
    cells = read_cells(path)
    head = next((text(c['source']) for c in cells if text(c['source']).startswith('# ')), f'# {path.stem}')
    return head, {c.get('id') for c in cells if re.match(r'#\|\s*export', text(c['source']))}

def shown(cell, sources, links): # `links`: md -> md with links to pages
    "A cell as nbformat allows it, source of the module folded; None if nothing is left of it."
    keys = 'cell_type id metadata source'.split() + ['outputs', 'execution_count'] * (cell['cell_type'] == 'code')
    res = {k:cell[k] for k in keys if k in cell} | dict(metadata={})
    src = text(cell['source'])
    src = re.sub(r'^#\|.*\n?', '', src, flags=re.M) if cell['cell_type'] == 'code' else links(src)
    if 'has_sd' in cell: res['metadata'],res['outputs'] = dict(doc=True),[entry_output(links(entry_md(cell)))]
    elif cell['id'] in sources: res['metadata'] = dict(fold=True)
    return res | dict(source=src) if src.strip() and not src.lstrip().startswith('<!-- WARNING') and 'nbdev_export()' not in src else None

def entry_md(cell):
    "The entry of a function as markdown, without the line that wants a web host for the source."
    md = '\n'.join(text(o.get('data', {}).get('text/markdown')) for o in cell['outputs'])
    return re.sub(r'^---\n+|^\[source\].*\n+', '', md, flags=re.M)

def entry_output(md): return dict(output_type='display_data', metadata={}, data={'text/markdown':md})

def page_links(
    md, # markdown of a cell
    up, # way from its page to the top folder, '' or '../'
    entries): # all places that have an entry, as page#name
    "Links to notebooks, and to nbdev's site root, as links to pages; a name without an entry is no link."
    def page(o):
        path,_,frag = o.partition('#')
        if path.startswith('../') and path.endswith(('.md', 'LICENSE')): path = up + 'project/' + Path(path).stem + '.html'
        elif path.endswith('.ipynb'): path = posixpath.join(posixpath.dirname(path), page_name(path))
        return path + ('#' + frag if frag else '')
    def name(m): return f'[{m[1]}]({up}{m[2]})' if m[2].lower() in entries else m[1]
    return relink(doc_link.sub(name, md), page)

def page_name(path): return re.sub(r'^\d+[a-z]?_', '', Path(path).stem) + '.html'

def floor(path):
    "What part of the sidebar the notebook at `path` (relative to nbs) belongs to."
    if len(path.parts) > 1: return rooms.get(path.parts[0], path.parts[0])
    m = re.match(r'(\d)\d', path.name)
    return floors[int(m[1])] if m and int(m[1]) < len(floors) else ''

def in_order(cells):
    "Cells with the entries of functions in the order of the source; nbdev puts those of one cell in backwards."
    return [c for entry,run in groupby(cells, lambda o: 'has_sd' in o) for c in (reversed(list(run)) if entry else run)]

def page(path, entries):
    "The notebook at `path` in _proc as a page: where it goes, its title, its floor and its cells."
    rel = path.relative_to(proc)
    links = partial(page_links, up='../' * (len(rel.parts)-1), entries=entries)
    head,sources = original(nbs/rel)
    cells = [shown(c, sources, links) for c in in_order(read_cells(path)) if c['cell_type'] != 'raw' and text(c['source']) != head]
    return dict(to=(rel.parent/page_name(rel)).as_posix(), title=head.splitlines()[0].strip('# '), floor=floor(rel), number=rel.name[:2],
        cells=[md_cell(links(head)), *filter(None, cells)])

def all_entries():
    "What nbdev made entries for, as page#name."
    found = ((path, c) for path in proc.rglob('*.ipynb') for c in read_cells(path) if 'has_sd' in c)
    return {f'{page_name(path)}#{o}'.lower() for path,c in found for o in re.findall(r'^### (.+)$', entry_md(c), re.M)}

def md_cell(src): return dict(cell_type='markdown', metadata={}, source=src)

def project_pages():
    "CHANGELOG, CONTRIBUTING, SECURITY and LICENSE as pages."
    def change(o): return '../' + page_name(o[4:]) if o.startswith('nbs/') else Path(o).stem + '.html' if '/' not in o else o
    for fn in (root/o for o in ('CONTRIBUTING.md', 'CHANGELOG.md', 'SECURITY.md', 'LICENSE')):
        src = fn.read_text(encoding='utf8')
        md = relink(src, change) if fn.suffix else f'# License\n\n```\n{src}\n```'
        yield dict(to=f'project/{fn.stem}.html', title=fn.stem.capitalize(), floor=rooms['project'], number='', cells=[md_cell(md)])

def write_pages(pages):
    "Each page as HTML with the sidebar and the way to the next page."
    import nbformat
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter
    exp = HTMLExporter(template_name='basic', template_file=str(root/'tools'/'page.html.j2'), extra_template_basedirs=[str(root/'tools')])
    exp.exclude_input_prompt = exp.exclude_output_prompt = True
    exp.environment.globals.update(pages=pages, groups=['', *floors, *rooms.values()], pygments=HtmlFormatter().get_style_defs('.highlight'))
    for i,p in enumerate(pages):
        cells = [dict(id=f'c{j}') | c for j,c in enumerate(p['cells'])]
        nb = nbformat.reads(json.dumps(dict(nbformat=4, nbformat_minor=5, metadata={}, cells=cells)), as_version=4)
        near = dict(page=p, up='../' * p['to'].count('/'), back=pages[i-1] if i else None, on=pages[i+1] if i+1 < len(pages) else None)
        html,_ = exp.from_notebook_node(nb, resources=near)
        fn = docs/p['to']
        fn.parent.mkdir(parents=True, exist_ok=True)
        fn.write_text(lower_anchors(html), encoding='utf8')

def lower_anchors(html):
    "Anchors of headings in lower case, as nbdev's links to names have them."
    return re.sub(r'(<h\d id="|class="anchor-link" href="#)([^"]+)', lambda m: m[1] + m[2].lower(), html)

class Refs(HTMLParser):
    "Collect the links and the anchors of a page."
    def __init__(self):
        super().__init__()
        self.links,self.ids = [],set()
    def handle_starttag(self, tag, attrs):
        d = dict(attrs)
        self.links += [d[k] for k in ('href', 'src') if d.get(k)]
        if d.get('id'): self.ids.add(d['id'])

def broken():
    "Links between pages that lead nowhere, as (page, link)."
    refs = {}
    for fn in docs.rglob('*.html'):
        refs[fn] = r = Refs()
        r.feed(fn.read_text(encoding='utf8'))
    for fn,r in refs.items():
        for uri in r.links:
            path,_,frag = uri.partition('#')
            if uri != '#' and outside(uri) and not uri.startswith('#'): continue
            to = (fn.parent/unquote(path)).resolve() if path else fn
            if not to.exists() or frag and to in refs and unquote(frag) not in refs[to].ids: yield fn.relative_to(docs).as_posix(),uri

def main():
    "Build all pages; links that lead nowhere are listed and end the program with 1."
    from nbdev.serve import proc_nbs
    os.chdir(root) # a relative path, because nbdev passes over every path with a dotted folder in it
    proc_nbs('nbs', n_workers=0, force=True)
    shutil.rmtree(docs, ignore_errors=True)
    entries = all_entries()
    pages = sorted((page(o, entries) for o in proc.rglob('*.ipynb')), key=lambda o: (o['floor'] in rooms.values(), o['floor'] != '', o['number'], o['to']))
    write_pages(pages + list(project_pages()))
    shutil.copytree(proc, docs, dirs_exist_ok=True, ignore=shutil.ignore_patterns('*.ipynb', '*.py', '_*'))
    bad = list(broken())
    print(f"{len(pages)} notebooks, read from {docs/'index.html'}")
    if bad: sys.exit('Links that lead nowhere:\n' + '\n'.join(f'  {a}: {b}' for a,b in bad))

if __name__ == '__main__': readme() if '--readme' in sys.argv else main()
