{#-
  What an incremental mart has to read again.

  A mart of hours keeps in `ledger_read_at` the time of the database at which its build looked for changes. The next
  build asks each source for the hours (by capture time, UTC) in which a row was written since then, whenever it was
  captured, and builds exactly these hours anew. So a late row, a row that came twice, an answer that a backfill
  replaced and a row that arrived while the mart was built all end in the right hour, and the cost follows what has
  changed, not how much there is.
-#}

{#- Spans of whole hours in which rows were written since {{ this }} was built, merged where they touch.

  sources: a list of {relation, at, written}: `at` is the column that the mart's hours are cut by, `written` the one that
  each write sets.
  returns: none: all is to be built; else a list of {first, last} (last is not included); empty: nothing has changed. #}
{%- macro changed_spans(sources, unit='hour') -%}
  {%- if not execute or not is_incremental() or not has_column(this, 'ledger_read_at') -%}
    {{ return(none) }}
  {%- endif -%}
  {%- set since = run_query(
        "select max(ledger_read_at) - interval '" ~ var('overlap_minutes') ~ " minutes' from " ~ this).columns[0].values()[0] -%}
  {%- if since is none -%}{{ return(none) }}{%- endif -%}
  {%- set query -%}
    with units as (
    {%- for source in sources %}
      select date_trunc('{{ unit }}', {{ source.at }}, 'UTC') as unit
      from {{ source.relation }} where {{ source.written }} >= '{{ since.isoformat() }}'
      {%- if not loop.last %} union {% endif %}
    {%- endfor %}
    ),
    islands as (
      select unit, unit - row_number() over (order by unit) * interval '1 {{ unit }}' as island from units
    )
    select min(unit)::text, (max(unit) + interval '1 {{ unit }}')::text from islands group by island order by 1
  {%- endset -%}
  {%- set spans = [] -%}
  {%- for row in run_query(query).rows -%}
    {%- do spans.append({'first': row[0], 'last': row[1]}) -%}
  {%- endfor -%}
  {{ return(spans) }}
{%- endmacro -%}

{#- A condition: the column lies in one of the spans of changed_spans(). -#}
{%- macro within(spans, column) -%}
  {%- if spans is none -%} true
  {%- elif not spans -%} false
  {%- else -%} (
    {%- for span in spans -%}
      ({{ column }} >= '{{ span.first }}'::timestamptz and {{ column }} < '{{ span.last }}'::timestamptz)
      {%- if not loop.last %} or {% endif -%}
    {%- endfor -%} )
  {%- endif -%}
{%- endmacro -%}

{#- The time up to which a build has seen all changes; asked before changed_spans() reads them. -#}
{%- macro ledger_read_at() -%}
  {%- if execute -%}
    '{{ run_query("select now()").columns[0].values()[0].isoformat() }}'::timestamptz
  {%- else -%} now()
  {%- endif -%}
{%- endmacro -%}

{%- macro has_column(relation, name) -%}
  {{ return(name in (adapter.get_columns_in_relation(relation) | map(attribute='name') | list)) }}
{%- endmacro -%}

{#- Deletes the mart's rows of days that retention has dropped from the ledger. An empty ledger drops nothing.
    The day is asked first: a query in its place would be an unknown to the planner, which then reads the whole mart. -#}
{%- macro forget_dropped_days(column) -%}
  {%- set oldest = none -%}
  {%- if execute -%}
    {%- set oldest = run_query(
          "select date_trunc('day', min(captured_at), 'UTC')::text from " ~ ref('stg_assessment_tasks')).columns[0].values()[0] -%}
  {%- endif -%}
  delete from {{ this }} where {% if oldest %}{{ column }} < '{{ oldest }}'::timestamptz{% else %}false{% endif %}
{%- endmacro -%}
