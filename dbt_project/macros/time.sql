{#- The hour, in UTC, that a time lies in. -#}
{%- macro hour_of(column) -%} date_trunc('hour', {{ column }}, 'UTC') {%- endmacro -%}

{#- Seconds from one time to a later one. Null where the order is the other way round: then a clock was wrong (a camera's
    is not the database's), and the number would say nothing; coverage counts such frames. -#}
{%- macro seconds_between(earlier, later) -%}
  (case when {{ later }} >= {{ earlier }} then extract(epoch from {{ later }} - {{ earlier }}) end)::double precision
{%- endmacro -%}

{#- The time that periods are counted back from; a macro, so that unit tests can set it. -#}
{%- macro as_of() -%} now() {%- endmacro -%}

{#- The beginning of the window of so many seconds that a time lies in; windows are counted from the epoch. -#}
{%- macro window_of(column, seconds) -%}
  to_timestamp(floor(extract(epoch from {{ column }}) / {{ seconds }}) * {{ seconds }})
{%- endmacro -%}

{#- hour, or day while there are windows longer than an hour: what windows of every length divide. -#}
{%- macro unit_of_windows() -%}
  {%- if not execute -%}{{ return('hour') }}{%- endif -%}
  {%- set longest = run_query("select coalesce(max(window_seconds), 0) from " ~ ref('stg_camera_windows')).columns[0].values()[0] -%}
  {{ return('day' if longest > 3600 else 'hour') }}
{%- endmacro -%}
