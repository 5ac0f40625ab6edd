{#- In a test's `where`, __recent__ stands for the rows captured within the variable tested_days. (dbt's own place for it:
    a yml file cannot call macros.) -#}
{%- macro get_where_subquery(relation) -%}
  {%- set where = config.get('where', '') -%}
  {%- if not where -%}{{ return(relation) }}{%- endif -%}
  {{ return("(select * from " ~ relation ~ " where " ~ where.replace('__recent__', recent('captured_at')) ~ ") dbt_subquery") }}
{%- endmacro -%}

{%- macro recent(column) -%} {{ column }} > now() - interval '{{ var('tested_days') }} days' {%- endmacro -%}
