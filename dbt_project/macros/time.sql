{#- The hour, in UTC, that a time lies in. -#}
{%- macro hour_of(column) -%} date_trunc('hour', {{ column }}, 'UTC') {%- endmacro -%}

{#- Seconds from one time to a later one. Null where the order is the other way round: then a clock was wrong (a camera's
    is not the database's), and the number would say nothing; coverage counts such frames. -#}
{%- macro seconds_between(earlier, later) -%}
  (case when {{ later }} >= {{ earlier }} then extract(epoch from {{ later }} - {{ earlier }}) end)::double precision
{%- endmacro -%}
